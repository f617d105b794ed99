"""Plans of stages trained in one process, real ZeRO and real data; what the tests of stages run there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console

from orchestrator.config.load import load_config
from orchestrator.config.run import RunConfig
from orchestrator.runs.lock import claim_folder
from orchestrator.sweeps.running import TrialsFailedError
from orchestrator.sweeps.stages.running import complete_chain
from orchestrator.sweeps.study import running
from orchestrator.training.driver import complete, make_ready
from orchestrator.training.ray_train import TrainingFailedError
from workers.contracts import DomainFeedback, DomainWeights


class StoppedError(RuntimeError):
    """What a killed process would be."""


class StoppingSource:
    """A weights source that fails when a step is asked for."""

    def __init__(self, source: Any, at_step: int) -> None:
        self._source, self._at_step = source, at_step

    def open_attempt(self) -> int:
        return self._source.open_attempt()

    def history(self) -> list[DomainWeights]:
        return self._source.history()

    def pull(self, step: int) -> DomainWeights:
        if step == self._at_step:
            raise StoppedError
        return self._source.pull(step)

    def push(self, feedback: DomainFeedback) -> DomainWeights:
        return self._source.push(feedback)


def train_plan(config_file: Path, overrides: list[str], stop: tuple[int, int] | None = None) -> list[str]:
    """Train a plan to its end, or to a step of its n-th training; the folders that were trained in."""
    config = load_config(config_file, overrides)
    trained: list[str] = []

    def train(run: RunConfig, run_id: str, console: Console) -> None:
        trained.append(run.folder.name)
        if stop is not None and len(trained) == stop[0]:
            _train_until(run, run_id, console, stop[1])
        else:
            complete(make_ready(run, run_id, console), alone=True)

    config.folder.mkdir(parents=True, exist_ok=True)
    try:
        complete_chain(config, Console(quiet=True), train)
    except StoppedError:
        assert stop is not None
    return trained


def train_run(config_file: Path, overrides: list[str]) -> None:
    """Train an ordinary run."""
    config = load_config(config_file, overrides)
    with claim_folder(config) as run_id:
        complete(make_ready(config, run_id, Console(quiet=True)), alone=True)


def train_study(config_file: Path, overrides: list[str]) -> tuple[list[str], str]:
    """A study with its trainings one after the other in this process: the folders that were trained in, and what a
    person is told at the end."""
    trained: list[str] = []

    def one_by_one(runs: Sequence[RunConfig], console: Console) -> None:
        reasons = {}
        for run in runs:
            trained.append(run.folder.name)
            try:
                with claim_folder(run) as run_id:
                    complete(make_ready(run, run_id, Console(quiet=True)), alone=True)
            except (ValueError, RuntimeError, OSError) as error:
                reasons[run.name] = str(error)
        if reasons:
            raise TrialsFailedError(reasons, len(runs))

    try:
        with mock.patch.object(running, "run_trials", one_by_one):
            running.run_study(load_config(config_file, overrides), Console(quiet=True))
    except TrainingFailedError as error:
        return trained, str(error)
    return trained, ""


def _train_until(run: RunConfig, run_id: str, console: Console, step: int) -> None:
    from orchestrator.controller.journal import DurableController
    from orchestrator.mixing import build_mixing_algorithm
    from workers.training.loop import train

    ready = make_ready(run, run_id, console)
    algorithm = build_mixing_algorithm(ready.mixing, ready.sizes)
    train(ready.plan, StoppingSource(DurableController(ready.plan.folder, run_id, algorithm), step))
