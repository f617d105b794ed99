"""Ray Tune over the points of a space: drawn at random, or by Optuna; with ASHA, or each to its end.

A search that was stopped begins with the points that it knows. Their trials are found done and report again what they
reported before, so what is drawn next, and what ASHA compares with, is as if nothing had happened.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console

from orchestrator.cluster.resources import count_fitting
from orchestrator.config.cluster import ClusterConfig
from orchestrator.config.search import AshaConfig, RegMixConfig, SampledSearchConfig
from orchestrator.runs.failure import note_failure
from orchestrator.sweeps.tune.space import Coordinate, Point
from orchestrator.sweeps.tune.trial import TRIAL_FILE, SearchTrial, Trials, is_done
from orchestrator.training.plan import count_steps
from orchestrator.views.runs import RunsView
from workers.fingerprint import fingerprint_bytes
from workers.settings import narrow_seed

_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the trials as it ends a run
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
# The driver of a worker group takes nothing that its workers need; every head has this resource, and Tune wants one.
_DRIVER_BUNDLE = {"node:__internal_head__": 0.001}

METRIC = "score"
_POINT = "point"  # key of a trial's settings
_ENDLESS = 1 << 40  # steps: a trial ends by itself, or at a rung


def train_points(
    trials: Trials,
    points: list[Point],
    num_trials: int,
    search: SampledSearchConfig | RegMixConfig,
    storage: Path,
    console: Console,
) -> None:
    """Train what is not done, inside a Ray session; what came of it lies in the trials' folders.

    Args:
        trials: what they share.
        points: the first of them, in order; unless the search learns, all.
        num_trials: how many in all.
        search: how.
        storage: where Tune may write.
        console: where a person looks on.
    """
    folder = trials.base.output_dir
    done = {path for point in points if is_done(path := folder / trials.run_of(point).name)}
    if done:
        console.print(f"{len(done)} of {num_trials} trials are done already", highlight=False)
    if len(done) >= num_trials:
        return
    waiting = {folder / trials.run_of(point).name for point in points} - done
    old = {path.parent for path in folder.glob(f"trial-*/{TRIAL_FILE}")} - waiting
    num_steps = count_steps(trials.base, trials.stores)

    def find_runs() -> dict[Path, int]:
        there = {path.parent for path in folder.glob(f"trial-*/{TRIAL_FILE}")}
        return dict.fromkeys(sorted(there - old), num_steps)

    with RunsView(find_runs, num_trials - len(done), console):
        _tune(
            trials,
            points,
            num_trials,
            seed=trials.base.seed,
            learns=search.type == "optuna",
            asha=search.asha if isinstance(search, SampledSearchConfig) else None,
            max_concurrent=search.max_concurrent,
            storage=storage,
        )


def _tune(
    trials: Trials,
    points: list[Point],
    num_trials: int,
    *,
    seed: int,
    learns: bool,
    asha: AshaConfig | None,
    max_concurrent: int | None,
    storage: Path,
) -> None:
    """Ray Tune over the points: the first of them are given, in order; where it `learns`, Optuna draws the rest."""
    cluster = trials.base.cluster
    room = count_fitting([cluster])
    os.environ.update(_ENVIRONMENT)
    results = tune.Tuner(
        tune.with_resources(tune.with_parameters(SearchTrial, trials=trials), _resources(cluster)),
        param_space={} if learns else {_POINT: tune.grid_search(points)},
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="min",
            num_samples=num_trials if learns else 1,
            search_alg=_optuna(trials, points, num_trials, seed) if learns else None,
            scheduler=_asha(asha),
            max_concurrent_trials=min(room, max_concurrent or room),
            # A trial that ended early has to be told at once; Tune tells one whose process it keeps only later.
            reuse_actors=asha is None,
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
            note_failure(folder, f"its process was lost: {_last_line(str(result.error))}")


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
    holds: what a driver that was killed left there is found, and goes."""
    folder = search.resolve() / f".ray-tune-{fingerprint_bytes(str(search.resolve()).encode())}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _resources(cluster: ClusterConfig) -> tune.PlacementGroupFactory:
    """One worker is the trial itself. More have a placement group of their own, which Ray Train asks for."""
    if cluster.num_workers > 1:
        return tune.PlacementGroupFactory([_DRIVER_BUNDLE])
    return tune.PlacementGroupFactory([{"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}])


def _last_line(text: str) -> str:
    """The line of a traceback that says what happened."""
    return text.strip().splitlines()[-1]
