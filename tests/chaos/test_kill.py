"""SIGKILL at chosen moments: the run goes on and gives what the undisturbed run gave, bit for bit."""

import functools
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runs import kill_group, num_lines, ray_processes, raymix, read_lines, start, wait_for, write_run

HANG_SECONDS = 15
RUN = {"training__max_steps": 100, "training__checkpoint_every": 20}

# Each moment of the run, and the step that metrics.jsonl must not have reached when it comes.
MOMENTS: list[tuple[str, Callable[[Path], bool], int]] = [
    ("before the first checkpoint", lambda run: num_lines(run / "metrics.jsonl") >= 6, 20),
    # Written within milliseconds: where that was missed, just after.
    ("while a checkpoint is written", lambda run: any((run / "checkpoints").glob("*step-00000040*")), 60),
    ("after the feedback of a later step", lambda run: (run / "feedback" / "00000044.json").exists(), 60),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = write_run(tmp_path_factory.mktemp("undisturbed"), **RUN)
    done = raymix("run", config)
    assert done.returncode == 0, done.stderr
    return config.parent / "runs" / "small"


@pytest.mark.soak  # in shorter tests a run on object storage stands for it
def test_a_run_whose_rank_is_killed_is_the_undisturbed_run(finished: Path, tmp_path: Path) -> None:
    references = json.loads((finished / "reference.json").read_text())["loss_nats"]
    config = write_run(tmp_path, mixing__reference=references)
    run = tmp_path / "runs" / "small"
    process = start("run", config)
    wait_for(process, lambda: (run / "checkpoints" / "step-00000010").exists())
    os.kill(min(ray_processes(process.pid, "RayTrainWorker")), signal.SIGKILL)  # the worker group is replaced
    assert process.wait(timeout=240) == 0
    assert _attempt(run) == 2
    (resumed,) = [line["step"] for line in read_lines(run / "events.jsonl") if line["kind"] == "attempt"][1:]
    assert resumed >= 10
    assert_equal_runs(run, finished)


@pytest.mark.soak
@pytest.mark.timeout(400)
@pytest.mark.parametrize("who", ["rank", "controller", "driver"])
def test_a_run_that_is_stopped_and_goes_on_is_the_undisturbed_run(finished: Path, tmp_path: Path, who: str) -> None:
    references = json.loads((finished / "reference.json").read_text())["loss_nats"]
    config = write_run(tmp_path, mixing__reference=references, cluster__hang_seconds=HANG_SECONDS)
    run = tmp_path / "runs" / "small"
    process = start("run", config)
    wait_for(process, lambda: num_lines(run / "metrics.jsonl") >= 6)
    actors = {"rank": "RayTrainWorker", "controller": "ControllerActor"}
    stopped = process.pid if who == "driver" else min(ray_processes(process.pid, actors[who]))
    os.kill(stopped, signal.SIGSTOP)
    wait_for(process, lambda: bool(_hangs(run)), timeout_s=3 * HANG_SECONDS)
    if who == "driver":
        os.kill(stopped, signal.SIGCONT)
    assert process.wait(timeout=240) == 0
    assert _attempt(run) == (2 if who == "rank" else 1)  # its worker group is replaced
    (hang,) = _hangs(run)
    host = socket.gethostname()
    names = {
        "rank": f"(pid {stopped}) has reported nothing for ",
        "controller": "the controller did not answer",
        "driver": f"the driver on {host} (pid {stopped}) does not run",
    }
    assert names[who] in hang
    assert_equal_runs(run, finished)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_run_that_is_killed_five_times_is_the_undisturbed_run(undisturbed: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path, **RUN)
    run = tmp_path / "runs" / "small"
    for killed, (moment, has_come, last_step) in enumerate(MOMENTS):
        process = start("run", config)
        wait_for(process, functools.partial(has_come, run))
        kill_group(process)
        assert 0 < num_lines(run / "metrics.jsonl") < last_step, moment
        assert _attempt(run) == killed + 1

    process = start("run", config)
    wait_for(process, lambda: num_lines(run / "metrics.jsonl") >= 62)
    os.kill(min(ray_processes(process.pid, "ControllerActor")), signal.SIGKILL)  # comes back unnoticed
    wait_for(process, lambda: num_lines(run / "metrics.jsonl") >= 75)
    assert _attempt(run) == len(MOMENTS) + 1
    os.kill(min(ray_processes(process.pid, "RayTrainWorker")), signal.SIGKILL)  # the worker group is replaced
    assert process.wait(timeout=240) == 0
    assert _attempt(run) == len(MOMENTS) + 2
    assert_equal_runs(run, undisturbed)


def _hangs(run: Path) -> list[str]:
    return [line["message"] for line in read_lines(run / "events.jsonl") if line["kind"] == "hang"]


def _attempt(run: Path) -> int:
    path = run / "attempt.json"
    return int(json.loads(path.read_text())["attempt"]) if path.exists() else 0


def assert_equal_runs(run: Path, undisturbed: Path) -> None:
    """Same rows, same losses, same weights, same model."""
    assert (run / "samples.jsonl").read_bytes() == (undisturbed / "samples.jsonl").read_bytes()
    for ours, theirs in zip(read_lines(run / "metrics.jsonl"), read_lines(undisturbed / "metrics.jsonl"), strict=True):
        assert (ours["step"], ours["loss_nats"]) == (theirs["step"], theirs["loss_nats"])
    for part in ("weights", "feedback"):
        for path in (undisturbed / part).iterdir():
            ours, theirs = json.loads((run / part / path.name).read_text()), json.loads(path.read_text())
            for varying in ("run_id", "attempt", "evaluation_seconds", "time"):
                ours.pop(varying, None)
                theirs.pop(varying, None)
            assert ours == theirs
    for path in (undisturbed / "evaluations").iterdir():
        assert (run / "evaluations" / path.name).read_bytes() == path.read_bytes()
    assert (run / "evaluation.json").read_bytes() == (undisturbed / "evaluation.json").read_bytes()
    weights = [folder / "model" / "model.safetensors" for folder in (run, undisturbed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
