"""The durable controller: a replayed folder is the controller that wrote it, whatever was cut off."""

import errno
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.controller import journal
from orchestrator.controller.core import FencedOutError
from orchestrator.controller.journal import DurableController
from orchestrator.controller.operator import ControlRequest, submit_request, waiting_requests
from orchestrator.mixing import build_mixing_algorithm
from orchestrator.mixing.base import Domain
from workers.contracts import DomainFeedback, DomainWeights

STEPS = (0, 10, 20, 30, 40)


def open_controller(folder: Path, kind: str = "versatune") -> DurableController:
    config: dict[str, Any] = {"type": kind}
    if kind == "versatune":
        config |= {"initial": "uniform", "reference": {"a": 0.5, "b": 0.1}, "update": "exponential"}
    domains = [Domain("a", 10, 10), Domain("b", 30, 10)]
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


def ask(folder: Path, kind: Any, *domains: str, **shares: float) -> str:
    request = ControlRequest(kind=kind, domains=list(domains), shares=shares, by="anna", why="a test")
    return submit_request(folder, request)


def steered_run(controller: DurableController, moments: dict[int, list[Any]]) -> Iterator[tuple[int, DomainWeights]]:
    """Steps 1 to 45 as rank 0 goes through them, with requests handed in before the step that they are listed at."""
    controller.push(feedback(0))
    for step in range(1, 46):
        for arguments, shares in moments.get(step, []):
            ask(controller.folder, *arguments, **shares)
        yield step, controller.pull(step)
        if step in STEPS:
            controller.push(feedback(step))


MOMENTS: dict[int, list[Any]] = {
    4: [(("set",), {"a": 0.9})],
    11: [(("pin", "a"), {}), (("set",), {"a": 0.35}), (("release", "b"), {})],  # the step after an evaluation
    20: [(("pause",), {})],  # before one
    31: [(("resume",), {}), (("release",), {})],
}


@pytest.mark.parametrize("kind", ["versatune", "proportional"])
def test_a_request_holds_from_the_very_step_on_and_is_replayed(tmp_path: Path, kind: str) -> None:
    controller = open_controller(tmp_path, kind)
    numbers = {}
    for step, weights in steered_run(controller, MOMENTS):
        numbers[step] = weights.version
        if step in MOMENTS:
            assert (weights.effective_step, weights.reason, weights.by) == (step, "operator", "anna")
            assert weights.why == "a test" and not waiting_requests(tmp_path)
            assert weights.version - numbers[step - 1] >= len(MOMENTS[step])
        before = files(tmp_path)
        again = open_controller(tmp_path, kind)
        assert believed(again) == believed(controller)
        assert files(tmp_path) == before
        assert again.pull(step) == weights
    versions = controller.history()
    assert [version.version for version in versions] == list(range(len(versions)))
    first = next(version for version in versions if version.effective_step == 4)
    assert first.shares == pytest.approx({"a": 0.9, "b": 0.1})
    assert not [v for v in versions if 20 < v.effective_step < 31]  # paused
    while_pinned = [v for v in versions if v.pinned == ["a"]]
    assert [v.shares["a"] for v in while_pinned[1:]] == [0.35] * (len(while_pinned) - 1)
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert kinds.count("operator") == 7


def test_the_algorithm_goes_on_from_what_was_set(tmp_path: Path) -> None:
    controller = open_controller(tmp_path)
    controller.push(feedback(0))
    ask(tmp_path, "set", a=0.9)
    assert controller.pull(1).shares["a"] == pytest.approx(0.9)
    shares = controller.push(feedback(10)).shares
    assert 0.85 < shares["a"] < 0.95 and shares["a"] != 0.9


def test_a_request_waits_where_steps_are_repeated(tmp_path: Path) -> None:
    """What a lost attempt trained on is trained on again; the change comes where nobody has been."""
    controller = open_controller(tmp_path)
    for step in range(1, 8):
        controller.pull(step)
    ask(tmp_path, "set", a=0.9)
    for step in range(4, 8):
        assert controller.pull(step).version == 0
    assert controller.pull(8).effective_step == 8
    controller.push(feedback(10))
    again = open_controller(tmp_path)  # another driver, from a checkpoint before that feedback
    ask(tmp_path, "set", a=0.2)
    assert [again.pull(step).version for step in range(6, 12)] == [0, 0, 1, 1, 1, 3]


def test_a_request_whose_answer_is_in_the_journal_is_not_answered_twice(tmp_path: Path) -> None:
    controller = open_controller(tmp_path)
    request_id = ask(tmp_path, "set", a=0.9)
    kept = (tmp_path / "requests" / f"{request_id}.json").read_bytes()
    controller.pull(1)
    (tmp_path / "requests" / f"{request_id}.json").write_bytes(kept)  # the crash came before the file was gone
    again = open_controller(tmp_path)
    assert again.pull(2).version == 1
    assert not waiting_requests(tmp_path)


def test_a_request_that_does_not_fit_is_refused_and_told(tmp_path: Path) -> None:
    controller = open_controller(tmp_path)
    with pytest.raises(ValueError, match="not trained domains of this run"):
        ask(tmp_path, "pin", "x")
    ask(tmp_path, "pin", a=0.8)
    ask(tmp_path, "set", b=0.7)  # fitted when it was asked, and no more when it is taken up
    (tmp_path / "requests" / "9-torn.json").write_text("{")
    assert controller.pull(1).version == 1
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["kind"] for event in events] == ["operator", "request_refused", "request_refused"]
    assert "sum to 1.5" in events[1]["message"] and "9-torn.json" in events[2]["message"]
    assert not waiting_requests(tmp_path)
    for end in ("stopped.json", "summary.json"):
        (tmp_path / end).write_text("{}")
        with pytest.raises(ValueError, match="this run is finished"):
            ask(tmp_path, "pause")
        (tmp_path / end).unlink()


def test_a_request_that_could_not_be_journaled_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = open_controller(tmp_path)
    ask(tmp_path, "set", a=0.9)

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    before = believed(controller)
    with monkeypatch.context() as patch:
        patch.setattr(journal, "write_durably", full)
        with pytest.raises(OSError, match="No space left"):
            controller.pull(1)
    assert believed(controller) == before and len(waiting_requests(tmp_path)) == 1
    assert controller.pull(1).shares["a"] == pytest.approx(0.9)


def test_what_is_pinned_stays_while_the_algorithm_moves_the_rest(tmp_path: Path) -> None:
    reference = {"a": 0.5, "b": 0.1, "c": 0.7}
    domains = [Domain(name, 10, 10) for name in reference]
    config = {"type": "versatune", "initial": "uniform", "reference": reference, "sigma": 2.0}
    controller = DurableController(tmp_path, "r", build_mixing_algorithm(config, domains))

    def push(step: int) -> DomainWeights:
        sums = {"a": 10.0, "b": 11.0, "c": 9.0}
        return controller.push(
            feedback(step).model_copy(update={"loss_sum_nats": sums, "num_tokens": dict.fromkeys(sums, 10)})
        )

    push(0)
    ask(tmp_path, "pin", a=0.6)
    pinned = [controller.pull(1), push(10), push(20)]
    assert [version.shares["a"] for version in pinned] == [0.6] * 3
    assert [version.pinned for version in pinned] == [["a"]] * 3
    assert pinned[0].shares["b"] < pinned[1].shares["b"] < pinned[2].shares["b"]
    ask(tmp_path, "pause")
    assert controller.pull(21).shares == push(30).shares == push(40).shares == pinned[-1].shares
    ask(tmp_path, "release")
    ask(tmp_path, "resume")
    assert controller.pull(41).shares == pinned[-1].shares
    after = push(50).shares  # the algorithm goes on from the pinned share, as if it had never been away
    gamma = {name: 1 - reference[name] / loss for name, loss in (("a", 1.0), ("b", 1.1), ("c", 0.9))}
    raised = {name: share * (1 + 2 * gamma[name]) for name, share in pinned[-1].shares.items()}
    assert after == pytest.approx({name: value / math.fsum(raised.values()) for name, value in raised.items()})


def test_a_request_waits_for_the_step_that_the_journal_has_come_to(tmp_path: Path) -> None:
    controller = open_controller(tmp_path)
    for step in range(1, 8):
        controller.pull(step)
    ask(tmp_path, "set", a=0.9)
    assert controller.pull(8).version == 1
    again = open_controller(tmp_path)  # another driver, from a checkpoint before that
    ask(tmp_path, "set", a=0.2)
    assert [again.pull(step).version for step in range(5, 9)] == [0, 0, 0, 2]


def test_once_asked_to_stop_it_gives_no_more_versions(tmp_path: Path) -> None:
    controller = open_controller(tmp_path)
    assert controller.pull(7) is not None
    controller.stop()
    assert not controller.is_stopped()  # nobody has heard of it: the training may still come to its end
    assert controller.pull(8) is None and controller.is_stopped()
    controller.push(feedback(10))  # what was measured still counts
    assert not open_controller(tmp_path).is_stopped() and open_controller(tmp_path).pull(11) is not None
    (event,) = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert (event["step"], event["kind"]) == (7, "stop")
