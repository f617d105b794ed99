"""A rank that finds the disk full: the reason is kept, and the groups that Ray Train would start next do nothing."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from ray.exceptions import RayTaskError
from safetensors import SafetensorError

from orchestrator.runs.failure import read_failure
from orchestrator.training import driver
from workers.engine import checkpoint_writer
from workers.training import loop

ADVICE = "free some, or choose another output_dir (and data.cache_dir); the same command then resumes from the last"


class Source:
    """A controller to whom nobody reports."""

    def report(self, progress: object) -> None:
        raise AssertionError(progress)

    def forget(self, progress: object) -> None:
        raise ConnectionError("there is no controller any more")


@pytest.fixture
def rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that is one rank of a worker group, whose training raises an error; how often it was begun."""
    begun: list[Path] = []
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=lambda: 1))
    plan = SimpleNamespace(model_validate=lambda given: SimpleNamespace(folder=tmp_path))
    monkeypatch.setattr(driver, "TrainingPlan", plan)

    def run(error: Exception) -> list[Path]:
        def train(plan: Any, source: Any, meter: Any) -> None:
            begun.append(plan.folder)
            raise error

        monkeypatch.setattr(loop, "train", train)
        driver._train_rank({"plan": {}, "source": Source(), "report_every_s": 60, "cores": None})
        return begun

    return run


def no_room(path: str | None) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (no_room("/data/run/feedback/7.json"), "/data/run/feedback/7.json"),
        (no_room(None), "the run's folder"),
        (RayTaskError("push", "Traceback", no_room("/data/run/weights/8.json")), "/data/run/weights/8.json"),
    ],
)
def test_no_group_is_started_that_would_find_it_full_again(
    rank: Any, tmp_path: Path, error: Exception, place: str
) -> None:
    with pytest.raises(type(error)):
        rank(error)
    where = str(tmp_path) if place == "the run's folder" else place
    reason = read_failure(tmp_path)
    assert reason is not None and reason.startswith(f"{where}: No space left on device; {ADVICE}")
    assert rank(error) == [tmp_path]  # trained once only


def test_another_error_is_tried_again(rank: Any, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(OSError):
            rank(OSError(errno.EIO, os.strerror(errno.EIO)))
    assert read_failure(tmp_path) is None


def test_a_file_of_a_checkpoint_says_its_place_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def fail(tensors: object, path: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint_writer, "save_file", fail)
    with pytest.raises(OSError) as caught:
        checkpoint_writer._write(tmp_path / "masters-00000.safetensors", {"a": torch.zeros(3)})
    assert (caught.value.errno, caught.value.filename) == (28, str(tmp_path / "masters-00000.safetensors"))
    assert caught.value.strerror == "No space left on device, writing 12 bytes of a checkpoint"
