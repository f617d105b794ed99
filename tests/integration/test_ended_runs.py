"""A run that ends before its last step, however: every tracker holds every step that metrics.jsonl has, to the last."""

import json
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.runs import kill_group, num_lines, read_lines, start, wait_for, write_run
from tests.unit.tracking.stores import Series, read_mlflow, read_tensorboard, read_wandb
from workers.clock import parse_time
from workers.contracts import DomainFeedback

EVERY, CHECKPOINT_EVERY = 6, 9


def lines_of(folder: Path) -> int:
    return num_lines(folder / "metrics.jsonl")


def at_step(step: int) -> Callable[[Path], bool]:
    return lambda folder: lines_of(folder) >= step


def in_an_evaluation(folder: Path) -> bool:
    """The step before it is written down, what it measures is not."""
    step = lines_of(folder)
    return step > 0 and step % EVERY == 0 and not (folder / "feedback" / f"{step:08d}.json").exists()


def in_a_checkpoint(folder: Path) -> bool:
    return any((folder / "checkpoints").glob(".step-*"))


CASES: dict[str, tuple[signal.Signals | None, Callable[[Path], bool], dict[str, Any]]] = {
    "SIGTERM at step 13": (signal.SIGTERM, at_step(13), {}),
    "Ctrl-C": (signal.SIGINT, at_step(16), {}),
    "SIGTERM in an evaluation": (signal.SIGTERM, in_an_evaluation, {}),
    "SIGTERM in a checkpoint": (signal.SIGTERM, in_a_checkpoint, {}),
    "a loss that is not finite": (None, at_step(0), {"training__learning_rate": 1e30}),
}


@pytest.mark.soak  # `test_metrics` stops one run with SIGTERM and looks at its trackers
@pytest.mark.parametrize("case", CASES)
def test_every_tracker_holds_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    ending, is_time, changes = CASES[case]
    for name, value in (
        ("WANDB_MODE", "offline"),
        ("WANDB_ERROR_REPORTING", "false"),
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
    ):
        monkeypatch.setenv(name, value)
    settings = {
        "training__max_steps": 100_000,
        "training__checkpoint_every": CHECKPOINT_EVERY,
        "training__deepspeed__zero_stage": 0,
        "evaluation__every": EVERY,
        "evaluation__max_rows": 24,
        "cluster__num_workers": 1,
        "tracking": ["tensorboard", "mlflow", "wandb"],
    }
    folder = tmp_path / "runs" / "small"
    process = start("run", write_run(tmp_path, **(settings | changes)))
    try:
        if ending is not None:
            wait_for(process, lambda: is_time(folder))
            process.send_signal(ending)
        assert process.wait(180) != 0
    finally:
        if process.poll() is None:
            kill_group(process)
    assert not (folder / "summary.json").exists()
    check_trackers(folder)


def check_trackers(folder: Path) -> None:
    lines = read_lines(folder / "metrics.jsonl")
    steps = [line["step"] for line in lines]
    assert steps == list(range(1, len(steps) + 1)) and steps
    feedback = [DomainFeedback.model_validate_json(path.read_bytes()) for path in sorted(folder.glob("feedback/*"))]
    assert [each.step for each in feedback] == list(range(0, steps[-1] + 1, EVERY))
    run, mlflow = read_mlflow(f"sqlite:///{folder.parent / 'mlflow.db'}", feedback[0].run_id)
    _, wandb = read_wandb(folder / "wandb")
    held: dict[str, Series] = {"mlflow": mlflow, "wandb": wandb}
    held["tensorboard"] = read_tensorboard(folder / "tensorboard")
    for name, series in held.items():
        losses = [(line["step"], pytest.approx(line["loss_nats"], rel=1e-5)) for line in lines]
        assert series["train_loss_nats"] == losses, name
        measured = [(each.step, pytest.approx(each.loss_nats("law"), rel=1e-5)) for each in feedback]
        assert series["loss_nats/law"] == measured, name
    assert run.info.status == "FAILED"
    events = read_lines(folder / "events.jsonl")
    assert not [event for event in events if event["kind"] == "tracking"]
    if any(event["kind"] == "diverged" for event in events):
        assert all("events/diverged" in series for series in held.values())
        assert json.loads((folder / "failure.json").read_text())["message"] in [event["message"] for event in events]
    assert all(parse_time(a["time"]) <= parse_time(b["time"]) for a, b in pairwise(lines))
