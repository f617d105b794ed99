"""SIGKILL of everything at three moments; then the same command gives what the undisturbed run gave, bit for bit."""

import json
from pathlib import Path

import pytest

from tests.runs import kill_when, num_lines, raymix, read_lines, write_run

MOMENTS = {
    "before the first checkpoint": lambda run: num_lines(run / "metrics.jsonl") >= 6,
    "while a checkpoint is written": lambda run: (run / "checkpoints" / ".step-00000020.tmp").exists(),
    "after the feedback of a later step": lambda run: (run / "feedback" / "00000024.json").exists(),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = write_run(tmp_path_factory.mktemp("undisturbed"))
    done = raymix("run", config)
    assert done.returncode == 0, done.stderr
    return config.parent / "runs" / "small"


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_same_command_goes_on(undisturbed: Path, tmp_path: Path, moment: str) -> None:
    config = write_run(tmp_path)
    run = tmp_path / "runs" / "small"
    kill_when(config, MOMENTS[moment])
    steps_before = num_lines(run / "metrics.jsonl")
    assert 0 < steps_before < 30
    done = raymix("run", config)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "attempt.json").read_text())["attempt"] == 2

    assert (run / "samples.jsonl").read_bytes() == (undisturbed / "samples.jsonl").read_bytes()
    for ours, theirs in zip(read_lines(run / "metrics.jsonl"), read_lines(undisturbed / "metrics.jsonl"), strict=True):
        assert (ours["step"], ours["loss_nats"]) == (theirs["step"], theirs["loss_nats"])
    for part in ("weights", "feedback"):
        for path in (undisturbed / part).iterdir():
            ours, theirs = json.loads((run / part / path.name).read_text()), json.loads(path.read_text())
            for identity in ("run_id", "attempt"):
                ours.pop(identity, None), theirs.pop(identity, None)
            assert ours == theirs
    weights = [folder / "model" / "model.safetensors" for folder in (run, undisturbed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
