"""What the driver does about a hang that the controller names, or a controller that is silent; Ray is pretended."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import ray

from orchestrator.controller.watch import Hang
from orchestrator.training.hangs import ending_hangs
from tests.runs import read_lines
from workers.training.progress import Progress

STUCK = Progress(1, "node1", 101, "training", 7, 61.0, 1.0, None)


@dataclass
class Source:
    """A controller's handle that gives these answers, one a look, and then none."""

    answers: list[Hang | Exception]
    done: list[str] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    def find_hang(self, bound_s: float) -> Hang | None:
        if not self.answers:
            self.is_over.set()
            return None
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def forget(self, progress: Progress) -> None:
        self.done.append(f"forget rank {progress.rank}")

    def restart(self) -> None:
        self.done.append("restart the controller")


class Actor:
    """A rank's process; `answer` is what asking whether it lives gives or raises."""

    def __init__(self, answer: Exception | None) -> None:
        self.answer = answer
        self.__ray_ready__ = self

    def remote(self) -> "Actor":
        return self


def watch(folder: Path, answers: list[Hang | Exception], monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Source]:
    """What was told, and what was done."""
    source = Source(answers)

    def get(actor: Actor, timeout: float) -> None:
        if actor.answer:
            raise actor.answer

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "kill", lambda actor: source.done.append("kill"))
    with ending_hangs(source, folder, bound_s=0.06) as told:  # type: ignore[arg-type]  # it is asked for no more
        assert source.is_over.wait(20)
    return told, source


def hang(answer: Exception | None) -> Hang:
    return Hang(STUCK, "has made no progress for 61 s (median step 1 s)", Actor(answer))


@pytest.mark.parametrize("answer", [None, ray.exceptions.GetTimeoutError("busy")], ids=["it answers", "it is busy"])
def test_a_rank_that_hangs_is_named_killed_and_forgotten(
    answer: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, source = watch(tmp_path, [hang(answer)], monkeypatch)
    assert source.done == ["kill", "forget rank 1"]
    (event,) = read_lines(tmp_path / "events.jsonl")
    assert (event["step"], event["kind"]) == (7, "hang") and [event["message"]] == told
    assert told[0].startswith("rank 1 on node1 (pid 101), last reported as training at step 7, has made no progress")
    assert told[0].endswith("; its process was killed, and the workers start again from the last checkpoint")


def test_a_rank_that_is_dead_is_forgotten_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told, source = watch(tmp_path, [hang(ray.exceptions.RayActorError())], monkeypatch)
    assert (told, source.done) == ([], ["forget rank 1"])


def test_a_controller_that_is_silent_is_started_again_and_one_that_restarts_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Hang | Exception] = [ray.exceptions.RayActorError(), ray.exceptions.GetTimeoutError("silent")]
    told, source = watch(tmp_path, errors, monkeypatch)
    assert source.done == ["restart the controller"]
    assert told == ["the controller did not answer for 0.06 s; its process was killed and is started again"]
