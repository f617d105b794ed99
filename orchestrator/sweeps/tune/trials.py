"""What the trials of a search share, and the run that each of them is.

A trial's folder is named by all that its result depends on. So a trial that was trained before, by this search or by
one that was killed, is found, and nothing is trained.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel

from orchestrator.config.derived import derive, nested
from orchestrator.config.errors import ConfigError
from orchestrator.config.plan import PlanConfig
from orchestrator.config.run import RunConfig
from orchestrator.mixing import Measured
from orchestrator.prepare.token_stores import DomainStores
from orchestrator.runs.failure import read_failure
from orchestrator.runs.folder import is_finished, read_run
from orchestrator.searches.base import Metric, Proposal, State, score_losses
from orchestrator.searches.space import Point, SearchSpace
from orchestrator.sweeps.stages.chain import digest_run
from workers.bounded import read_model, read_object
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
        point: Point | None = read_object(path).get("point")
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


class _Trial(BaseModel):
    """trial.json, as far as a page shows it."""

    changes: dict[str, Any]


class Evaluation(BaseModel):
    """The metric at a step; None where a loss was not finite."""

    step: int
    score: float | None


class TrialRecord(BaseModel):
    """A trial in search.json."""

    name: str
    folder: Path
    changes: dict[str, Any]
    """Dotted key -> value."""
    state: State
    reason: str = ""
    """Why it failed."""
    course: list[Evaluation] = []
    """After the base model's evaluation, in order."""
    losses_nats: dict[str, float | None] = {}
    """Of each domain at the last evaluation, in nats per token."""

    @property
    def score(self) -> float | None:
        return self.course[-1].score if self.course else None


class SearchRecord(BaseModel):
    """search.json."""

    name: str
    type: str
    metric: str
    """In words; in nats per token, lower is better."""
    base_score: float | None
    """The base model's."""
    trials: list[TrialRecord]
    """In the order they began."""
    best: str | None
    """Name of the trial that best.yaml is made of: the lowest metric at the end of a finished one."""
    notes: list[str] = []
    """What else a reader should know."""


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    records: list[TrialRecord]
    runs: dict[str, RunConfig]
    """Of the records, by name."""
    notes: list[str]


def collect(folders: Iterable[Path], trials: Trials) -> list[TrialRecord]:
    """Read what these trials left."""
    records = []
    for folder in folders:
        state, reason = _state(folder)
        changes = read_model(folder / TRIAL_FILE, _Trial).changes
        records.append(read_trial(trials, folder, changes, state, [folder], reason))
    return records


def read_trial(
    trials: Trials, folder: Path, changes: Mapping[str, Any], state: State, parts: Iterable[Path], reason: str = ""
) -> TrialRecord:
    """The course of a trial over its parts: the folders of its run, or of its stages, in order."""
    course: list[Evaluation] = []
    losses: dict[str, float | None] = {}
    for part in parts:
        before = course[-1].step if course else 0
        for feedback in read_run(part).feedback:
            if feedback.step > 0:  # the evaluation before tells nothing of the changes
                course.append(Evaluation(step=before + feedback.step, score=_finite(trials.score(feedback))))
                losses = {name: _finite(feedback.loss_nats(name)) for name in trials.base.domains}
    return TrialRecord(
        name=folder.name,
        folder=folder,
        changes=dict(changes),
        state=state,
        reason=reason,
        course=course,
        losses_nats=losses,
    )


def base_score(folders: Iterable[Path], trials: Trials) -> float | None:
    """The metric of the base model, which every trial measures first."""
    for folder in folders:
        run = read_run(folder)
        if run.feedback and run.feedback[0].step == 0:
            return _finite(trials.score(run.feedback[0]))
    return None


def best_of(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The finished trial with the lowest metric; of equal ones the first."""
    done = [record for record in records if record.state == "finished" and record.score is not None]
    return min(done, key=lambda record: record.score or 0.0, default=None)


def write_best(path: Path, run: RunConfig, about: str) -> None:
    content = yaml.safe_dump(run.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)
    write_durably(path, f"# {about}\n{content}".encode())


def _state(folder: Path) -> tuple[State, str]:
    if is_finished(folder):
        return "finished", ""
    if (folder / STOPPED_FILE).exists():
        return "ended early", ""
    if (reason := read_failure(folder)) is not None:
        return "failed", reason
    return "unfinished", ""


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
