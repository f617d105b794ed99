"""Plans of stages trained in one process, real ZeRO and real data; what the tests of stages run there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console

from orchestrator.config.load import load_config
from orchestrator.sweeps import run as run_driver
from orchestrator.sweeps.run import RunsFailedError
from orchestrator.sweeps.study import driver as study_driver
from orchestrator.training.driver import ReadyRun, train
from tests.crews import OneByOne, WorkHere
from workers.contracts import DomainFeedback, DomainWeights


class StoppedError(BaseException):
    """What a killed process would be: nothing catches it."""


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
    config = load_config(config_file, overrides).plan

    def train_or_stop(run: ReadyRun) -> None:
        if stop is not None and len(crew.trained) == stop[0]:
            _train_until(run, stop[1])
        else:
            train(run, in_this_process=True)

    crew = OneByOne(train_or_stop)
    try:
        with (
            mock.patch.object(run_driver, "open_work", _work_here),
            mock.patch.object(run_driver, "Foreground", lambda _: crew),
        ):
            run_driver.run(config, Console(quiet=True))
    except StoppedError:
        assert stop is not None
    return crew.trained


def train_run(config_file: Path, overrides: list[str]) -> None:
    """Train an ordinary run."""
    train_plan(config_file, overrides)


def train_study(config_file: Path, overrides: list[str]) -> tuple[list[str], str]:
    """A study with its trainings one after the other in this process: the folders that were trained in, and what the
    user reads at the end."""
    crew = OneByOne(lambda run: train(run, in_this_process=True))
    try:
        with (
            mock.patch.object(study_driver, "open_work", _work_here),
            mock.patch.object(study_driver, "SideBySide", lambda _: crew),
        ):
            study_driver.run_study(load_config(config_file, overrides), Console(quiet=True))
    except RunsFailedError as error:
        return crew.trained, str(error)
    return crew.trained, ""


@contextmanager
def _work_here(log: Path, **settings: bool) -> Iterator[WorkHere]:
    yield WorkHere()


def _train_until(run: ReadyRun, step: int) -> None:
    from orchestrator.controller.journal import DurableController
    from orchestrator.mixing import build_mixing_algorithm
    from workers.training.loop import train

    controller = DurableController(run.plan.folder, run.plan.run_id, build_mixing_algorithm(run.mixing, run.sizes))
    train(run.plan, StoppingSource(controller, step))
