"""Many runs side by side through Ray Tune, as far as the cluster has room.

    every run    claim its folder -> its data, reference losses and plan, one run after the other: what two runs share
                 is computed once
    every trial  train in a process of its own and write summary.json: with one worker the trial is the rank, with more
                 it drives a worker group

The truth is in the runs' folders, not in Tune's: a run with a summary.json is not run again, one that was stopped goes
on from its own checkpoint, and what was decided by then is replayed from its journal. So Tune is given only what is
left, and its own files are thrown away.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from rich.console import Console

from orchestrator.cluster.session import ray_session
from orchestrator.config.machine import crowding
from orchestrator.config.run import ClusterConfig, RunConfig
from orchestrator.prepare.findings import look_at_data
from orchestrator.prepare.token_stores import DomainStores, template_day
from orchestrator.runs.lock import claim_folder
from orchestrator.tracking.watch import track
from orchestrator.training.driver import ReadyRun, complete, make_ready, prepare
from orchestrator.training.ray_train import check_resources
from orchestrator.views.findings import print_findings
from orchestrator.views.quiet import chatter_to
from orchestrator.views.runs import TrialsView
from workers.durable import write_durably

TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the trials as it ends a run
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
# The driver of a worker group takes nothing that its workers need; every head has this resource, and Tune wants one.
_DRIVER_BUNDLE = {"node:__internal_head__": 0.001}

Failures = dict[Path, str]
"""Folder of a run that has no result -> why, for a person."""


class TrialsFailedError(RuntimeError):
    """Some runs ended without a result; all others have one. `reasons` says why, by the run's name."""

    def __init__(self, reasons: Mapping[str, str], num_runs: int) -> None:
        self.reasons = dict(reasons)
        lines = [f"  {name}: {reason}" for name, reason in reasons.items()]
        heading = f"{len(reasons)} of {num_runs} runs failed; the same command tries them again:"
        super().__init__("\n".join([heading, *lines]))


def run_trials(configs: Sequence[RunConfig], console: Console, *, keep_models: bool = True) -> None:
    """Do every run that is not done yet, side by side, in one Ray session.

    Args:
        configs: runs with folders of their own. Ray is started, or joined, as the one with most workers wants it.
        console: is told what was found done; progress goes to the terminal itself.
        keep_models: False leaves only numbers behind, neither models nor checkpoints.

    Raises:
        TrialsFailedError: after all others have ended, with the reason of each that failed.
        ValueError: two configurations have the same folder.
    """
    _check_distinct(configs)
    with ExitStack() as claims:
        waiting, failures = _claim(configs, claims)
        if num_done := len(configs) - len(waiting) - len(failures):
            console.print(f"{num_done} of {len(configs)} runs are done already", highlight=False)
        if waiting:
            with tune_folder(configs[0].output_dir, [config.folder for config in configs]) as storage:
                failures |= _run_waiting(waiting, keep_models, storage)
    if failures:
        names = {config.folder.resolve(): config.name for config in configs}
        raise TrialsFailedError({names[folder]: reason for folder, reason in failures.items()}, len(configs))


def num_side_by_side(nodes: Iterable[Mapping[str, float]], clusters: Iterable[ClusterConfig]) -> int:
    """How many runs fit at a time, whichever of them they are; at least 1.

    Args:
        nodes: CPU and GPU of each node.
        clusters: what the runs want.

    Worker groups wait for each other without an end where there are more drivers than room for their workers.
    """
    nodes = list(nodes)
    return max(1, min(_num_worker_places(nodes, cluster) // cluster.num_workers for cluster in clusters))


def _num_worker_places(nodes: list[Mapping[str, float]], cluster: ClusterConfig) -> int:
    each = {"CPU": float(cluster.cpus_per_worker), "GPU": cluster.gpus_per_worker}
    return sum(int(min(node.get(kind, 0.0) / amount for kind, amount in each.items() if amount)) for node in nodes)


def _check_distinct(configs: Sequence[RunConfig]) -> None:
    if not configs:
        raise ValueError("no runs are given; give at least one configuration")
    folders = [config.folder.resolve() for config in configs]
    if twice := sorted({str(folder) for folder in folders if folders.count(folder) > 1}):
        raise ValueError(f"two runs have the same folder: {', '.join(twice)}; give them different names")


def _claim(configs: Sequence[RunConfig], claims: ExitStack) -> tuple[dict[str, RunConfig], Failures]:
    """Run id -> configuration of every run that is not done. All claims are held until the end."""
    waiting: dict[str, RunConfig] = {}
    failures: Failures = {}
    for config in configs:
        try:
            run_id = claims.enter_context(claim_folder(config))
        except (ValueError, RuntimeError, OSError) as error:
            failures[config.folder.resolve()] = str(error)
            continue
        if not (config.folder / "summary.json").exists():
            (config.folder / "failure.json").unlink(missing_ok=True)  # of an earlier try
            waiting[run_id] = config
    return waiting, failures


def _run_waiting(waiting: Mapping[str, RunConfig], keep_models: bool, storage: Path) -> Failures:
    configs = list(waiting.values())
    most = max(
        (config.cluster for config in configs), key=lambda cluster: cluster.num_workers * cluster.cpus_per_worker
    )
    os.environ.update(TUNE_ENVIRONMENT)
    with chatter_to(configs[0].output_dir / "trials.log") as console:
        console.print(f"{len(configs)} runs: starting Ray ({most.address})", markup=False, highlight=False)
        if warning := crowding(most):
            console.print(warning, style="yellow", markup=False, highlight=False)
        with ray_session(most, include_dashboard=True):
            runs, failures = _make_all_ready(waiting, console)
            if runs:
                runs = [run if keep_models else run.without_models() for run in runs]
                num_steps = {run.plan.folder: run.plan.num_steps for run in runs}
                view = TrialsView(lambda: num_steps, len(runs), console)
                with track([run.tracked for run in runs]), view:
                    failures |= _train_side_by_side(runs, keep_models, most.max_failures, storage)
    return failures


def _make_all_ready(waiting: Mapping[str, RunConfig], console: Console) -> tuple[list[ReadyRun], Failures]:
    """What trials need. Runs over the same data look at it once: finding its stores reads all of its files."""
    runs: list[ReadyRun] = []
    failures: Failures = {}
    known: dict[str, dict[str, DomainStores]] = {}
    for run_id, config in waiting.items():
        try:
            check_resources(config.cluster)
            data = config.model_dump_json(include={"domains", "data", "model"}) + str(config.cache_dir)
            if data not in known:
                known[data] = prepare(config, console)
                print_findings(console, look_at_data(config.data, known[data], template_day(config)).findings)
            runs.append(make_ready(config, run_id, console, known[data]))
        except (ValueError, RuntimeError, OSError) as error:
            failures[config.folder.resolve()] = str(error)
    return runs, failures


def _train_side_by_side(runs: list[ReadyRun], keep_models: bool, max_failures: int, storage: Path) -> Failures:
    """Train all of them through Tune, which keeps its own files in `storage`."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    trial = tune.with_parameters(_train_one, runs=runs, keep_models=keep_models)
    results = tune.Tuner(
        tune.with_resources(trial, lambda settings: trial_resources(runs[settings["index"]].cluster)),
        param_space={"index": tune.grid_search(list(range(len(runs))))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=num_side_by_side(nodes, [run.cluster for run in runs]), reuse_actors=True
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=str(storage),
            verbose=0,
            # Of the trial's process; what the run itself raised would come again.
            failure_config=tune.FailureConfig(max_failures=max_failures),
        ),
    ).fit()
    lost = {index: str(results[index].error) for index in range(len(results)) if results[index].error}
    return {
        run.plan.folder: _recorded_failure(run.plan.folder) or last_line(lost.get(index, "it did not end"))
        for index, run in enumerate(runs)
        if not (run.plan.folder / "summary.json").exists()
    }


@contextmanager
def tune_folder(parent: Path, held: Sequence[Path]) -> Iterator[Path]:
    """Where Tune may write, on the runs' own file system. Its name is a function of folders that the caller holds: what
    a driver that was killed left there is found, and goes."""
    folders = "\n".join(str(folder.resolve()) for folder in held)
    name = f".ray-tune-{hashlib.blake2b(folders.encode(), digest_size=6).hexdigest()}"
    folder = parent.resolve() / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def trial_resources(cluster: ClusterConfig) -> tune.PlacementGroupFactory:
    """One worker is the trial itself. More have a placement group of their own, which Ray Train asks for."""
    if cluster.num_workers > 1:
        return tune.PlacementGroupFactory([_DRIVER_BUNDLE])
    return tune.PlacementGroupFactory([{"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}])


def _train_one(settings: dict[str, Any], runs: list[ReadyRun], keep_models: bool) -> None:
    """What a trial does. A run that fails is a result, not an accident to repeat."""
    run = runs[settings["index"]]
    try:
        complete(run, alone=run.cluster.num_workers == 1)
    except Exception as error:  # of any kind: the others go on, and the person is told
        note_failure(run.plan.folder, explain(error))
        return
    if not keep_models:
        shutil.rmtree(run.plan.folder / "checkpoints", ignore_errors=True)


def note_failure(folder: Path, reason: str) -> None:
    """Leave in a run's folder why it has no result."""
    write_durably(folder / "failure.json", json.dumps({"message": reason}).encode())


def explain(error: Exception) -> str:
    """Why a trial failed, for a person."""
    known = isinstance(error, ValueError | RuntimeError) and str(error)
    return str(error) if known else f"{type(error).__name__}: {error}"


def _recorded_failure(folder: Path) -> str | None:
    path = folder / "failure.json"
    return json.loads(path.read_text())["message"] if path.exists() else None


def last_line(text: str) -> str:
    """The line of a traceback that says what happened."""
    return text.strip().splitlines()[-1]
