"""Ray Tune over the points of a space: drawn at random, or by Optuna; with ASHA, or each to its end.

A search that was stopped begins with the points that it knows. Their trials are found done and report again what they
reported before, so what is drawn next, and what ASHA compares with, is as if nothing had happened.
"""

import json
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console

from orchestrator.cluster.session import count_fitting
from orchestrator.config.cluster import ClusterConfig
from orchestrator.config.errors import ConfigError
from orchestrator.config.run import RunConfig
from orchestrator.runs.failure import explain, forget_failure, note_failure
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.lock import claim_folder
from orchestrator.runs.summary import write_summary
from orchestrator.searches.sampled import AshaConfig, Sampled, SampledSearchConfig
from orchestrator.searches.space import Coordinate, Point
from orchestrator.sweeps.tune.trials import STOPPED_FILE, TRIAL_FILE, Found, Trials, collect, is_done, note_trial
from orchestrator.sweeps.work import Work
from orchestrator.tracking.watch import track
from orchestrator.training.driver import train
from orchestrator.training.plan import count_steps
from orchestrator.training.resolve import resolve_run
from orchestrator.views.runs import RunsView
from workers.contracts import DomainFeedback
from workers.durable import write_durably
from workers.fingerprint import fingerprint_bytes
from workers.settings import narrow_seed

_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the trials as it ends a run
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
# The driver of a worker group takes nothing that its workers need; every head has this resource, and Tune needs one.
_DRIVER_BUNDLE = {"node:__internal_head__": 0.001}

METRIC = "score"
_POINT = "point"  # key of a trial's settings
_ENDLESS = 1 << 40  # steps: a trial ends at its last step, or at a rung
_POLL_SECONDS = 0.1


def sample(trials: Trials, search: Sampled, work: Work) -> Found:
    """Train the points of a search, inside a Ray session: those that are known first, and what is not done of them."""
    config, points, folder = search.config, trials.known_points(), trials.base.output_dir
    trials = replace(trials, ends_early=config.asha is not None)
    if not (learns := config.type == "optuna"):
        drawn = [proposal.point for proposal in search.next_trials([]) if proposal.point is not None]
        points = (points + [point for point in drawn if point not in points])[: config.num_trials]
    num_trials = config.num_trials if learns else len(points)
    folders = {folder / trials.run_of(point).name for point in points}
    done = {path for path in folders if is_done(path)}
    if done:
        work.console.print(f"{len(done)} of {num_trials} trials are done already", highlight=False)
    old = {path.parent for path in folder.glob(f"trial-*/{TRIAL_FILE}")} - (folders - done)
    num_steps = count_steps(trials.base, trials.stores)

    def find_runs() -> dict[Path, int]:
        there = {path.parent for path in folder.glob(f"trial-*/{TRIAL_FILE}")}
        return dict.fromkeys(sorted(there - old), num_steps)

    with tune_folder(folder) as storage:
        if len(done) < num_trials:
            with RunsView(find_runs, num_trials - len(done), work.console):
                _tune(trials, points, num_trials, config, storage)
    runs = {run.name: run for run in map(trials.run_of, trials.known_points())}
    return Found(collect([run.folder for run in runs.values()], trials), runs, search.conclude([]))


def _tune(trials: Trials, points: list[Point], num_trials: int, config: SampledSearchConfig, storage: Path) -> None:
    cluster, learns = trials.base.cluster, config.type == "optuna"
    room = count_fitting([cluster])
    os.environ.update(_ENVIRONMENT)
    results = tune.Tuner(
        tune.with_resources(tune.with_parameters(SearchTrial, trials=trials), _resources(cluster)),
        param_space={} if learns else {_POINT: tune.grid_search(points)},
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="min",
            num_samples=num_trials if learns else 1,
            search_alg=_optuna(trials, points, num_trials, trials.base.seed) if learns else None,
            scheduler=_asha(config.asha),
            max_concurrent_trials=min(room, config.max_concurrent or room),
            # A trial that ended early has to be told at once; Tune tells one whose process it keeps only later.
            reuse_actors=config.asha is None,
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(storage),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # the run has its own
            failure_config=tune.FailureConfig(max_failures=cluster.max_failures),
        ),
    ).fit()
    for index in range(len(results)):
        result = results[index]
        point = (result.config or {}).get(_POINT)
        if result.error and point and not is_done(folder := trials.run_of(point).folder):
            last_line = str(result.error).strip().splitlines()[-1]  # of a traceback: what happened
            note_failure(folder, f"its process was lost: {last_line}")


def _asha(asha: AshaConfig | None) -> Any:
    if asha is None:
        return None
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(
        time_attr="step", max_t=_ENDLESS, grace_period=asha.grace_steps, reduction_factor=asha.reduction_factor
    )


def _optuna(trials: Trials, points: list[Point], num_trials: int, seed: int) -> Any:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(
        seed=narrow_seed(seed + len(points)),  # what is drawn after known points must not be those points again
        n_startup_trials=min(10, max(2, num_trials // 3)),  # Optuna's 10 would leave small searches to chance
        constant_liar=True,  # trials under way count as bad, so that those beside them look elsewhere
    )
    return OptunaSearch(
        {f"{_POINT}/{name}": _distribution(coordinate) for name, coordinate in trials.space.coordinates.items()},
        metric=METRIC,
        mode="min",
        sampler=sampler,
        points_to_evaluate=[{f"{_POINT}/{name}": value for name, value in point.items()} for point in points],
    )


def _distribution(coordinate: Coordinate) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if coordinate.num_options is not None:
        return CategoricalDistribution(range(coordinate.num_options))
    return FloatDistribution(coordinate.low, coordinate.high, log=coordinate.is_logarithmic)


@contextmanager
def tune_folder(search: Path) -> Iterator[Path]:
    """Where Tune may write, on the runs' own file system. Its name follows from the search's folder, which the caller
    locks: what a driver that was killed left there is found and removed."""
    folder = search.resolve() / f".ray-tune-{fingerprint_bytes(str(search.resolve()).encode())}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _resources(cluster: ClusterConfig) -> tune.PlacementGroupFactory:
    """One worker is the trial itself. More have a separate placement group, which Ray Train asks for."""
    if cluster.max_workers > 1:
        return tune.PlacementGroupFactory([_DRIVER_BUNDLE])
    return tune.PlacementGroupFactory([{"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}])


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
                    train(ready, in_this_process=ready.cluster.max_workers == 1, stopping=self._stopping)
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
