"""What a person sees while reference losses are computed: which domain, which step of how many, loss, time left."""

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.runs.folder import REFERENCE_PROGRESS_FILE, RunFolder
from orchestrator.views.runs import ReferenceView
from tests.unit.conftest import FakeRun
from workers.training.plan import TrainingPlan


class Plans:
    """Trainings of one domain each, which a test moves on."""

    def __init__(self, folder: Path, **num_steps: int) -> None:
        self.runs = {name: FakeRun(folder / name, [name], total, every=10, seed=0) for name, total in num_steps.items()}
        self.plans = {
            name: TrainingPlan.model_construct(folder=folder / name, num_steps=total)
            for name, total in num_steps.items()
        }


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.views.runs.POLL_SECONDS", 0.02)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def wait_for(console: Console, text: str) -> None:
    until = time.monotonic() + 10
    while text not in text_of(console):
        assert time.monotonic() < until, f"{text!r} did not appear in {text_of(console)!r}"
        time.sleep(0.01)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_every_evaluation_is_told_with_its_place(tmp_path: Path, is_terminal: bool) -> None:
    made = Plans(tmp_path, math=40, law=30)
    console = Console(file=io.StringIO(), width=200, force_terminal=is_terminal, color_system=None)
    with ReferenceView(made.plans, console, None):
        made.runs["math"].write_start()
        made.runs["math"].write_steps(1, 10)
        wait_for(console, "10/40")
        made.runs["math"].write_steps(11, 20)
        loss, base = made.runs["math"].losses[20]["math"], made.runs["math"].losses[0]["math"]
        wait_for(console, f"loss {loss:.3f}, base {base:.3f}")
        wait_for(console, "20/40")
        assert "left in all" in text_of(console)
        made.runs["law"].write_start()
        made.runs["law"].write_steps(1, 30)
    assert "30/30" in text_of(console)  # what came after the last look too
    if not is_terminal:
        places = [line.split("  ")[1] for line in text_of(console).splitlines()]
        assert places == ["math: step 10/40", "math: step 20/40", "law: step 30/30"]


def test_the_run_that_waits_has_it_in_a_file_as_long_as_it_lasts(tmp_path: Path) -> None:
    made = Plans(tmp_path / "alone", math=40, law=30)
    waiting = tmp_path / "run"
    waiting.mkdir()
    run = RunFolder(waiting)
    with ReferenceView(made.plans, Console(file=io.StringIO()), waiting):
        assert run.refresh() and run.reference is not None and run.reference.seconds_left is None
        made.runs["math"].write_start()
        until = time.monotonic() + 10
        made.runs["math"].write_steps(1, 5)
        while run.reference.domains["math"].step < 5:
            assert time.monotonic() < until
            run.refresh()
        made.runs["math"].write_steps(6, 25)
        while run.reference.domains["math"].step < 25:
            assert time.monotonic() < until
            run.refresh()
        math, law = run.reference.domains["math"], run.reference.domains["law"]
        assert (math.total_steps, math.loss_nats) == (40, pytest.approx(made.runs["math"].losses[20]["math"]))
        assert math.loss_nats_base == pytest.approx(made.runs["math"].losses[0]["math"])
        assert (law.step, law.total_steps, law.loss_nats) == (0, 30, None)
        assert run.reference.seconds_left is not None and run.reference.seconds_left > 0
    assert not (waiting / REFERENCE_PROGRESS_FILE).exists()
    assert run.refresh() and run.reference is None


def test_it_goes_with_an_error_too_and_leaves_no_thread(tmp_path: Path) -> None:
    made = Plans(tmp_path / "alone", math=40)
    (tmp_path / "run").mkdir()
    with pytest.raises(KeyboardInterrupt), ReferenceView(made.plans, Console(file=io.StringIO()), tmp_path / "run"):
        raise KeyboardInterrupt
    assert list((tmp_path / "run").iterdir()) == []


def test_what_an_earlier_driver_told_is_not_told_again_and_does_not_count_for_the_pace(tmp_path: Path) -> None:
    made = Plans(tmp_path / "alone", math=40)
    made.runs["math"].write_start()
    made.runs["math"].write_steps(1, 30)
    console, waiting = Console(file=io.StringIO(), width=200), tmp_path / "run"
    waiting.mkdir()
    with ReferenceView(made.plans, console, waiting):
        told = json.loads((waiting / REFERENCE_PROGRESS_FILE).read_text())
        assert told["seconds_left"] is None and told["domains"]["math"]["step"] == 30
    assert text_of(console) == ""
