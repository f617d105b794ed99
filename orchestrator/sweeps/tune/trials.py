"""What the trials of a search share, and the run that each of them is.

A trial's folder is named by all that its result depends on. So a trial that was trained before, by this search or by
one that was killed, is found, and nothing is trained.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.config.derived import derive, nested
from orchestrator.config.errors import ConfigError
from orchestrator.config.plan import PlanConfig
from orchestrator.config.run import RunConfig
from orchestrator.mixing import Measured
from orchestrator.prepare.token_stores import DomainStores
from orchestrator.runs.folder import is_finished
from orchestrator.searches.base import Metric, Proposal, score_losses
from orchestrator.searches.space import Point, SearchSpace
from orchestrator.sweeps.stages.chain import digest_run
from workers.contracts import DomainFeedback
from workers.durable import write_durably
from workers.fingerprint import fingerprint

TRIAL_FILE, STOPPED_FILE = "trial.json", "stopped.json"


@dataclass(frozen=True)
class Trials:
    """What all trials of a search share. Plain data: it travels to their processes."""

    base: RunConfig
    """The run that they vary: what is measured before a training is in it as numbers, its folders are the search's."""
    space: SearchSpace
    stores: Mapping[str, DomainStores]
    metric: Metric
    target: str | None
    measured: Measured = field(default_factory=Measured)
    """What mixing settings leave to be measured, once for all trials."""
    ends_early: bool = False
    """Whether a trial may be ended before its last step."""
    here: Path = field(default_factory=Path.cwd)
    """What relative paths of the configuration are relative to: a trial's process may run elsewhere."""

    def run_of(self, point: Point) -> RunConfig:
        return self.run_with(self.space.changes(point))

    def run_with(self, changes: Mapping[str, Any]) -> RunConfig:
        """The run with these changes, by dotted key, named by all that its result depends on.

        ConfigError if they do not fit together.
        """
        changed = derive(RunConfig, self.base, nested(changes), "search.space")
        run = changed.replaced(mixing=changed.mixing.with_files_in(self.here).with_measured(self.measured))
        return run.replaced(name=f"trial-{digest_run(run, self.stores)}")

    def plan_of(self, proposal: Proposal) -> PlanConfig | RunConfig:
        """What is trained for a proposal: a run, or the plan of stages that it is the last of.

        ConfigError if its values do not fit together.
        """
        if proposal.num_steps is None:
            run = self.run_with(proposal.changes)
            return run.replaced(name=run.name.replace("trial", proposal.kind))
        stages = [self._stage(place, each) for place, each in enumerate(proposal.chain)]
        given = self.base.model_dump(mode="json", exclude_unset=True, include=set(RunConfig.model_fields))
        name = f"member-{fingerprint([given, stages])}"
        return PlanConfig.model_validate(given | {"name": name, "stages": stages})

    def _stage(self, place: int, proposal: Proposal) -> dict[str, Any]:
        run = self.run_with(proposal.changes)
        return {
            "name": f"generation-{place + 1}",
            "mixing": run.mixing.model_dump(mode="json", exclude_unset=True),
            "learning_rate": run.training.learning_rate,
            "warmup_fraction": run.training.warmup_fraction,
            "max_steps": proposal.num_steps,
            "optimizer": "kept" if place else "fresh",
            "seed": self.base.seed + place,  # or every stage would see the same rows first
        }

    def score(self, feedback: DomainFeedback) -> float:
        domains = list(self.base.domains)
        losses_ND = np.array([[feedback.loss_nats(name) for name in domains]])
        return float(score_losses(self.metric, losses_ND, domains, self.target)[0])

    def known_points(self) -> list[Point]:
        """Points that were tried before with this base and are in this space, oldest first."""
        files = sorted(self.base.output_dir.glob(f"trial-*/{TRIAL_FILE}"), key=lambda path: path.stat().st_mtime_ns)
        return [point for path in files if (point := self._known_point(path)) is not None]

    def _known_point(self, path: Path) -> Point | None:
        point: Point | None = json.loads(path.read_text()).get("point")
        if point is None or not self.space.holds(point):
            return None
        try:
            return point if self.run_of(point).name == path.parent.name else None
        except ConfigError:
            return None


def note_trial(folder: Path, changes: Mapping[str, Any], point: Point | None = None) -> None:
    """Write trial.json, unless it is there: its time tells when the trial began."""
    if not (folder / TRIAL_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        content = {"changes": changes} if point is None else {"point": point, "changes": changes}
        write_durably(folder / TRIAL_FILE, json.dumps(content, indent=1).encode())


def is_done(folder: Path) -> bool:
    """Whether a trial's training is over permanently: at its end, or ended early."""
    return is_finished(folder) or (folder / STOPPED_FILE).exists()
