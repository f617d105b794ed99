"""One trial of a search: a point of the space, the run that it stands for, and that run's training seen by Ray Tune.

A trial's folder is named by all that its result depends on. So a point that was trained before, by this search or by
one that was killed, is found: its evaluations are reported again, one by one as they were, and nothing is trained. That
is how samplers and ASHA get their memory back.
"""

import json
import math
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from rich.console import Console

from orchestrator.config.derived import derive, nested
from orchestrator.config.errors import ConfigError
from orchestrator.config.run import RunConfig
from orchestrator.config.search import Metric
from orchestrator.mixing import Measured, MixingConfig
from orchestrator.prepare.token_stores import DomainStores
from orchestrator.runs.failure import explain, forget_failure, note_failure
from orchestrator.runs.folder import RunFolder, is_finished
from orchestrator.runs.lock import claim_folder
from orchestrator.sweeps.stages.chain import digest_run
from orchestrator.sweeps.tune.metric import score_losses
from orchestrator.sweeps.tune.space import Point, SearchSpace
from orchestrator.tracking.watch import track
from orchestrator.training.driver import complete
from orchestrator.training.resolve import resolve_run
from workers.contracts import DomainFeedback
from workers.durable import write_durably

TRIAL_FILE, STOPPED_FILE = "trial.json", "stopped.json"
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Trials:
    """What all trials of a search share. Plain data: it travels to their processes."""

    base: RunConfig
    """The run that they vary: what is measured before a training is in it as numbers, its folders are the search's."""
    space: SearchSpace
    stores: Mapping[str, DomainStores]
    metric: Metric
    target: str | None
    references: dict[str, float] | None = None
    """Reference losses, for mixing settings that want them computed."""
    shares: dict[str, float] | None = None
    """The base model's own distribution, for mixing settings that want it detected."""
    ends_early: bool = False
    """Whether a trial may be ended before its last step."""
    here: Path = field(default_factory=Path.cwd)
    """What relative paths of the configuration are relative to: a trial's process may run elsewhere."""

    def run_of(self, point: Mapping[str, float]) -> RunConfig:
        """The run that a point stands for; see `run_with`."""
        return self.run_with(self.space.changes(point))

    def run_with(self, changes: Mapping[str, Any]) -> RunConfig:
        """The run with these changes, by dotted key, named by all that its result depends on.

        Raises:
            ConfigError: they do not fit together.
        """
        changed = derive(RunConfig, self.base, nested(changes), "search.space")
        run = changed.replaced(mixing=self._with_numbers(changed))
        return run.replaced(name=f"trial-{digest_run(run, self.stores)}")

    def score(self, feedback: DomainFeedback) -> float:
        """The metric at an evaluation."""
        domains = list(self.base.domains)
        losses_ND = np.array([[feedback.loss_nats(name) for name in domains]])
        return float(score_losses(self.metric, losses_ND, domains, self.target)[0])

    def known_points(self) -> list[Point]:
        """Points that were tried before with this base and lie in this space, oldest first."""
        files = sorted(self.base.output_dir.glob(f"trial-*/{TRIAL_FILE}"), key=lambda path: path.stat().st_mtime_ns)
        return [point for path in files if (point := self._known_point(path)) is not None]

    def _known_point(self, path: Path) -> Point | None:
        point = json.loads(path.read_text())["point"]
        if not self.space.holds(point):
            return None
        try:
            return point if self.run_of(point).name == path.parent.name else None
        except ConfigError:
            return None

    def _with_numbers(self, run: RunConfig) -> MixingConfig:
        """Mixing settings with what was measured once for all trials, and with absolute paths."""
        measured = Measured(
            distributions={} if self.shares is None else {"detected": self.shares},
            references={} if self.references is None else {"computed": self.references},
        )
        return run.mixing.with_files_in(self.here).with_measured(measured)


class TrialTraining:
    """A trial's training, in a thread of its own; its evaluations are seen by the run's files, as by anybody."""

    def __init__(self, run: RunConfig, point: Point, changes: Mapping[str, Any], trials: Trials) -> None:
        self._run, self._trials = run, trials
        self._files = RunFolder(run.folder)
        self._last_step = 0  # the base model's evaluation tells nothing of the point
        self._stopping = threading.Event()
        run.folder.mkdir(parents=True, exist_ok=True)
        if not (run.folder / TRIAL_FILE).exists():
            content = {"point": point, "changes": changes}
            write_durably(run.folder / TRIAL_FILE, json.dumps(content, indent=1).encode())
        self._thread = threading.Thread(target=self._train, name=run.name, daemon=True)
        self._thread.start()

    def next_evaluation(self) -> DomainFeedback | None:
        """The next evaluation, waited for; None once the training is over and all were seen."""
        while True:
            is_over = not self._thread.is_alive()  # asked first: whatever it wrote is then seen below
            self._files.refresh()
            for feedback in self._files.feedback:
                if feedback.step > self._last_step:
                    self._last_step = feedback.step
                    return feedback
            if is_over:
                return None
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """End it if it is still under way, for good where trials may end early, and wait for that."""
        if self._trials.ends_early and self._thread.is_alive():
            self._files.refresh()
            step = self._files.metrics.last_step
            # At once: Tune gives the last trials of a search ten seconds to end, then kills their processes.
            write_durably(self._run.folder / STOPPED_FILE, json.dumps({"step": step}).encode())
        self._stopping.set()
        self._thread.join()

    def _train(self) -> None:
        folder = self._run.folder
        try:
            with claim_folder(self._run, waits=True) as run_id:  # a twin may train the same point
                if is_done(folder):
                    return
                forget_failure(folder)
                quiet = Console(quiet=True)
                ready = resolve_run(self._run, run_id, self._trials.stores, quiet, _already_measured).without_models()
                with track([ready.tracked]):
                    complete(ready, in_this_process=ready.cluster.num_workers == 1, stopping=self._stopping)
        except KeyboardInterrupt:  # `stop`
            pass
        except Exception as error:  # of any kind: the other trials go on, and the person is told
            note_failure(folder, explain(error))
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


class SearchTrial(tune.Trainable):
    """What Ray Tune runs: a step is an evaluation. Not the function interface, which ends a trial by killing it: what a
    worker group held would stay taken."""

    _training: TrialTraining | None
    _last: dict[str, Any]
    """What was reported last."""

    def setup(self, config: dict[str, Any], trials: Trials) -> None:  # type: ignore[override]  # by with_parameters
        """Begin to train the point."""
        self._trials = trials
        self._begin(config["point"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin to train another point."""
        self.cleanup()
        self._begin(new_config["point"])
        return True

    def step(self) -> dict[str, Any]:
        """The next evaluation; at the end the last one again, with `done`."""
        feedback = None if self._training is None else self._training.next_evaluation()
        if feedback is None:
            return {**self._last, "done": True}
        value = self._trials.score(feedback)
        self._last = {"step": feedback.step, "score": value if math.isfinite(value) else math.inf}
        return self._last

    def cleanup(self) -> None:
        """End the training where it has not ended, cleanly: what it holds of the cluster is free afterwards."""
        if self._training is not None:
            self._training.stop()

    def _begin(self, point: Point) -> None:
        self._last = {"step": 0, "score": math.inf}
        self._training = None
        try:
            run = self._trials.run_of(point)
        except ConfigError:  # a corner of the space that the run's own rules forbid: the worst there is
            return
        self._training = TrialTraining(run, point, self._trials.space.changes(point), self._trials)


def is_done(folder: Path) -> bool:
    """Whether a trial's training is over for good: at its end, or ended early."""
    return is_finished(folder) or (folder / STOPPED_FILE).exists()


def _already_measured(run: RunConfig) -> Mapping[str, float]:
    raise AssertionError("the references of a search are measured once, before its trials")
