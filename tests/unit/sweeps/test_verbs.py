"""`run`, `compare` and `study` behave alike: when another process trains what they need, when a training fails, and
when they are interrupted and started again.

Each is a verb over the same two plans, which share their first stage. The trainings are pretended; folders, locks,
data, pages and summaries are real.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.config.sweep import SweepConfig
from orchestrator.sweeps import run as run_driver
from orchestrator.sweeps.compare import driver as compare_driver
from orchestrator.sweeps.compare.driver import expand_variants
from orchestrator.sweeps.run import StageNode, stage_nodes
from orchestrator.sweeps.study import driver as study_driver
from orchestrator.sweeps.study.grid import build_cells, plan_trainings
from orchestrator.training import plan
from orchestrator.training.driver import ReadyRun
from tests.crews import OneByOne, WorkHere
from tests.unit.sweeps.pretended import DMT, MIXED, config_in, pretend, write_data

STUDY = {
    "specialised": ["math", "code"],
    "general": ["chat"],
    "k": [0.5],
    "grids": [],
    "strategies": ["mixed_sequential", "dmt"],
    "num_resamples": 100,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "run": {"stages": DMT},
    "compare": {"compare": {"variants": {"mixed": {"stages": MIXED}, "dmt": {"stages": DMT}}}},
    "study": {"study": STUDY},
}
NUM_STAGES = {"run": 2, "compare": 3, "study": 3}

every_verb = pytest.mark.parametrize("verb", SETTINGS)


class Verb:
    """A verb over pretended trainings."""

    def __init__(self, name: str, config: SweepConfig) -> None:
        self.name, self.config = name, config

    def nodes(self) -> list[StageNode]:
        """The stages that it trains; the first is the one that others start from."""
        here = WorkHere()
        match self.name:
            case "run":
                return stage_nodes(self.config.plan, here)
            case "compare":
                plans = [run for runs in expand_variants(self.config, ["mixed", "dmt"], 1).values() for run in runs]
                return [node for each in plans for node in stage_nodes(each, here)]
            case _:
                return list(plan_trainings(build_cells(self.config), here.data.stores).nodes.values())

    def __call__(self, train: Callable[[ReadyRun], None] = pretend) -> list[str]:
        """Run it; the folders that were trained in."""
        crew, console = OneByOne(train), Console(quiet=True)
        with pytest.MonkeyPatch.context() as patch:
            for module in (run_driver, compare_driver, study_driver):
                patch.setattr(module, "open_work", _work_here)
            patch.setattr(run_driver, "Foreground", lambda _: crew)
            for module in (compare_driver, study_driver):
                patch.setattr(module, "SideBySide", lambda _: crew)
            match self.name:
                case "run":
                    run_driver.run(self.config.plan, console)
                case "compare":
                    compare_driver.compare(self.config, [], 1, console)
                case _:
                    study_driver.run_study(self.config, console)
        return crew.trained


@contextmanager
def _work_here(log: Path, **settings: bool) -> Iterator[WorkHere]:
    yield WorkHere()


@pytest.fixture
def make_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Verb]:
    monkeypatch.setattr(plan, "find_start", lambda config: None)  # a pretended training leaves no checkpoint
    write_data(tmp_path)
    return lambda name: Verb(name, config_in(tmp_path, name, **SETTINGS[name]))


def finished(verb: Verb) -> set[str]:
    return {node.find_folder().name for node in verb.nodes() if node.is_finished()}


@every_verb
def test_each_training_is_done_once(make_verb: Callable[[str], Verb], verb: str) -> None:
    run = make_verb(verb)
    assert len(trained := run()) == len(set(trained)) == NUM_STAGES[verb]
    assert run() == []


@every_verb
def test_what_another_process_trains_is_waited_for_and_used(make_verb: Callable[[str], Verb], verb: str) -> None:
    run = make_verb(verb)
    first = run.nodes()[0]
    begun, may_end = threading.Event(), threading.Event()

    def elsewhere() -> None:
        with first.hold() as run_id:
            begun.set()
            may_end.wait(10)
            pretend(ready := first.resolve(run_id, WorkHere()))
            first.finish(ready, WorkHere())

    other = threading.Thread(target=elsewhere)
    other.start()
    begun.wait(10)
    threading.Timer(1.5, may_end.set).start()
    trained = run()
    other.join()
    assert first.find_folder().name not in trained and len(trained) == NUM_STAGES[verb] - 1
    assert len(finished(run)) == NUM_STAGES[verb]


@every_verb
def test_a_training_that_fails_is_named_and_the_same_command_trains_it_and_what_starts_from_it(
    make_verb: Callable[[str], Verb], verb: str
) -> None:
    run = make_verb(verb)
    first = run.nodes()[0].find_folder().name

    def too_hot(ready: ReadyRun) -> None:
        if ready.plan.folder.name == first:
            raise RuntimeError("step 3: the loss is not finite")
        pretend(ready)

    with pytest.raises(RuntimeError, match=r"step 3: the loss is not finite"):
        run(too_hot)
    assert finished(run) == set()  # all others start from it
    assert len(run()) == NUM_STAGES[verb] == len(finished(run))


@every_verb
def test_interrupted_it_leaves_what_is_done_and_the_same_command_does_the_rest(
    make_verb: Callable[[str], Verb], verb: str
) -> None:
    run = make_verb(verb)
    first = run.nodes()[0].find_folder().name

    def interrupt(ready: ReadyRun) -> None:
        if ready.plan.folder.name != first:
            raise KeyboardInterrupt
        pretend(ready)

    with pytest.raises(KeyboardInterrupt):
        run(interrupt)
    assert finished(run) == {first}
    assert first not in run() and len(finished(run)) == NUM_STAGES[verb]
