"""The training of one point of a space, as Ray Tune sees it.

A point that was trained before has its evaluations reported again, one by one as they were: that is how samplers and
ASHA get their memory back.
"""

import json
import math
import shutil
import threading
import time
from collections.abc import Mapping
from typing import Any

from ray import tune
from rich.console import Console

from orchestrator.config.errors import ConfigError
from orchestrator.config.run import RunConfig
from orchestrator.runs.failure import explain, forget_failure, note_failure
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.lock import claim_folder
from orchestrator.runs.summary import write_summary
from orchestrator.searches.space import Point
from orchestrator.sweeps.tune.trials import STOPPED_FILE, Trials, is_done, note_trial
from orchestrator.tracking.watch import track
from orchestrator.training.driver import train
from orchestrator.training.resolve import resolve_run
from workers.contracts import DomainFeedback
from workers.durable import write_durably

_POLL_SECONDS = 0.1


class TrialTraining:
    """A trial's training, in its own thread; its evaluations are read from the run's files."""

    def __init__(self, run: RunConfig, point: Point, trials: Trials) -> None:
        self._run, self._trials = run, trials
        self._files = RunFolder(run.folder)
        self._last_step = 0  # the base model's evaluation tells nothing of the point
        self._stopping = threading.Event()
        note_trial(run.folder, trials.space.changes(point), point)
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
        """End it if it is still running, permanently where trials may end early, and wait for that."""
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
                    train(ready, in_this_process=ready.cluster.num_workers == 1, stopping=self._stopping)
                    write_summary(folder, ready.num_bad_rows)
        except KeyboardInterrupt:  # `stop`
            pass
        except Exception as error:  # of any kind: the other trials continue, and the user sees it
            note_failure(folder, explain(error))
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


class SearchTrial(tune.Trainable):
    """What Ray Tune runs: a step is an evaluation. Not the function interface, which ends a trial by killing it: what a
    worker group held would stay taken."""

    _training: TrialTraining | None
    _last: dict[str, Any]
    """What was reported last."""

    def setup(self, config: dict[str, Any], trials: Trials) -> None:  # type: ignore[override]  # by with_parameters
        self._trials = trials
        self._begin(config["point"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
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
        """End the training cleanly if it is still running: what it uses of the cluster is free afterwards."""
        if self._training is not None:
            self._training.stop()

    def _begin(self, point: Point) -> None:
        self._last = {"step": 0, "score": math.inf}
        self._training = None
        try:
            run = self._trials.run_of(point)
        except ConfigError:  # a corner of the space that the run's own rules forbid: the worst there is
            return
        self._training = TrialTraining(run, point, self._trials)


def _already_measured(run: RunConfig) -> Mapping[str, float]:
    raise AssertionError("the references of a search are measured once, before its trials")
