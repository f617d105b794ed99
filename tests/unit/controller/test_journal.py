"""The durable controller: a replayed folder is the controller that wrote it, whatever was cut off."""

import errno
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from orchestrator.controller import journal
from orchestrator.controller.actor import DomainSize
from orchestrator.controller.core import FencedOutError
from orchestrator.controller.journal import DurableController
from orchestrator.mixing import build_mixing_algorithm
from workers.contracts import DomainFeedback

STEPS = (0, 10, 20, 30, 40)


def open_controller(folder: Path, kind: str = "versatune") -> DurableController:
    config: dict[str, Any] = {"type": kind}
    if kind == "versatune":
        config |= {"initial": "uniform", "reference": {"a": 0.5, "b": 0.1}, "update": "exponential"}
    domains = [DomainSize("a", 10, 10), DomainSize("b", 30, 10)]
    return DurableController(folder, "r", build_mixing_algorithm(config, domains))


def feedback(step: int, attempt: int = 1, run_id: str = "r") -> DomainFeedback:
    losses = {"a": 10 + step / 7, "b": math.nan if step == 20 else 21 - step / 3}
    return DomainFeedback(
        run_id=run_id,
        attempt=attempt,
        step=step,
        weights_version=0,
        loss_sum_nats=losses,
        num_tokens={"a": 10, "b": 11},
    )


def believed(controller: DurableController) -> tuple[Any, ...]:
    """Everything that later answers depend on, and what is derived."""
    core = controller.core
    mixing = (controller.folder / "mixing.jsonl").read_text()
    return core.versions, core.algorithm.state_dict(), core._last, core._last_counted, core.attempt, mixing


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for part in ("weights", "feedback") for path in folder.glob(f"{part}/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("kind", ["versatune", "proportional"])
def test_a_replayed_folder_is_the_controller_that_wrote_it(tmp_path: Path, kind: str) -> None:
    controller = open_controller(tmp_path, kind)
    assert controller.open_attempt() == 1
    for step in STEPS[:-1]:
        controller.push(feedback(step))
        before = files(tmp_path)
        again = open_controller(tmp_path, kind)
        assert believed(again) == believed(controller)
        assert files(tmp_path) == before
    assert again.push(feedback(STEPS[-1])) == controller.push(feedback(STEPS[-1]))
    assert again.open_attempt() == 2


def test_pushing_again_changes_nothing(tmp_path: Path) -> None:
    controller = open_controller(tmp_path)
    answers = {step: controller.push(feedback(step)) for step in STEPS}
    before = files(tmp_path), believed(controller)
    for step in reversed(STEPS):
        assert controller.push(feedback(step)) == answers[step]
    assert (files(tmp_path), believed(controller)) == before


def test_refused_feedback_leaves_no_trace(tmp_path: Path) -> None:
    controller = open_controller(tmp_path)
    controller.open_attempt()
    controller.open_attempt()
    before = files(tmp_path)
    for refused in (feedback(10, attempt=1), feedback(10, attempt=2, run_id="x")):
        with pytest.raises(FencedOutError):
            controller.push(refused)
        with pytest.raises(FencedOutError):
            open_controller(tmp_path).push(refused)
    assert files(tmp_path) == before


def test_a_crash_between_feedback_and_version_decides_the_same_again(tmp_path: Path) -> None:
    controller = open_controller(tmp_path / "run")
    for step in STEPS:
        controller.push(feedback(step))
        copy = tmp_path / f"crashed-{step}"
        shutil.copytree(tmp_path / "run", copy)
        max(copy.glob("weights/*.json")).unlink()
        assert believed(open_controller(copy)) == believed(controller)
        assert files(copy) == files(tmp_path / "run")


@pytest.mark.parametrize("failing", ["feedback", "weights"])
def test_what_could_not_be_written_was_never_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    controller = open_controller(tmp_path)
    controller.push(feedback(0))
    before = believed(controller)
    write = journal.write_durably

    def full(path: Path, data: bytes) -> None:
        if path.parent.name == failing:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(journal, "write_durably", full)
        for _ in range(3):
            with pytest.raises(OSError, match=rf"No space left.*{failing}/0"):
                controller.push(feedback(10))
            assert believed(controller) == before
            assert controller.pull(10).version == 1
    assert controller.push(feedback(10)).version == 2
    untroubled = open_controller(tmp_path / "other")
    for step in (0, 10):
        untroubled.push(feedback(step))
    assert controller.core.versions == untroubled.core.versions


def test_recorded_versions_win_over_what_the_algorithm_says_now(tmp_path: Path) -> None:
    controller = open_controller(tmp_path)
    for step in STEPS:
        controller.push(feedback(step))
    for path in tmp_path.glob("weights/*.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"by": "an older release"}))
    assert {version.by for version in open_controller(tmp_path).history()} == {"an older release"}


def test_versions_without_their_feedback_are_an_error(tmp_path: Path) -> None:
    """Going on would give the number of a version that workers have trained on to another one."""
    controller = open_controller(tmp_path)
    for step in STEPS:
        controller.push(feedback(step))
    (tmp_path / "feedback" / "00000040.json").unlink()
    with pytest.raises(ValueError, match="6 weights versions, but feedback leads to 5"):
        open_controller(tmp_path)


def test_left_over_temporary_files_are_not_read(tmp_path: Path) -> None:
    open_controller(tmp_path).push(feedback(0))
    (tmp_path / "weights" / ".000002.json.77.tmp").write_text("{")
    (tmp_path / "feedback" / ".00000010.json.77.tmp").write_text("")
    assert len(open_controller(tmp_path).history()) == 2


def test_attempts_are_numbered_for_good(tmp_path: Path) -> None:
    numbers = [open_controller(tmp_path).open_attempt() for _ in range(4)]
    assert numbers == [1, 2, 3, 4]
    (tmp_path / "attempt.json").unlink()
    open_controller(tmp_path).push(feedback(0, attempt=7))
    assert open_controller(tmp_path).open_attempt() == 8
