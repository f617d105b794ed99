"""The step logs: sums over counts, and after a resume the same lines as if the run had never been stopped."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workers.clock import TIME_PATTERN, utc_now
from workers.data.batches import Batch
from workers.training.step_log import StepLog

pytestmark = pytest.mark.usefixtures("one_rank")


def write(folder: Path, first: int, last: int, num_steps_done: int) -> None:
    log = StepLog(folder, num_steps_done, {"a": 8, "b": 20}, log_samples=True)
    for step in range(first, last + 1):
        no_tokens = np.empty((4, 0), dtype=np.int32)
        batch = Batch(
            step=step,
            weights_version=step // 3,
            input_ids_BL=no_tokens,
            position_ids_BL=no_tokens,
            loss_mask_BL=no_tokens.astype(np.bool_),
            domain_B=np.array([0, 1, 0, 0]),
            row_B=np.array([step, 7, 2, 1]),
            global_loss_tokens=12,
            global_tokens=30,
            global_rows_D=np.array([3, 1]),
            domain_rows_seen_D=np.array([3 * step, step]),
        )
        log.write(batch, [6.0 + step, 0.0], [12, 0], {"seconds": 0.5, "grad_norm": None})
    log.flush()
    log.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_says_what_the_step_did(tmp_path: Path) -> None:
    before = utc_now()
    write(tmp_path, 1, 2, 0)
    line = lines(tmp_path / "metrics.jsonl")[1]
    assert before <= line["time"] <= utc_now() and re.match(TIME_PATTERN, line["time"])
    assert {key: value for key, value in line.items() if key != "time"} == {
        "step": 2,
        "loss_nats": 8 / 12,
        "domain_loss_nats": {"a": 8 / 12, "b": None},
        "num_tokens": 30,
        "num_loss_tokens": 12,
        "weights_version": 0,
        "rows": {"a": 3, "b": 1},
        "epochs": {"a": 0.75, "b": 0.1},
        "seconds": 0.5,
        "grad_norm": None,
    }
    assert lines(tmp_path / "samples.jsonl")[2:] == [
        {"step": 2, "rank": 0, "domain": "a", "rows": [2, 2, 1]},
        {"step": 2, "rank": 0, "domain": "b", "rows": [7]},
    ]


@pytest.mark.parametrize(
    "torn",
    [b"", b'{"step": 1}', b'{"step": 8, "lo', b'{"step": 8}', b"\0\0\0\n", b"[]\n", b'{"step": null}\n{"step":9}\n'],
)
@pytest.mark.parametrize("done", [0, 1, 5, 7])
def test_a_resumed_log_reads_as_if_never_stopped(
    tmp_path: Path, done: int, torn: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.training.step_log.utc_now", lambda: "2027-01-15T08:00:00.000000Z")
    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "whole", 1, 9, 0)
    write(tmp_path / "stopped", 1, 7, 0)
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (tmp_path / "stopped" / name).open("ab") as file:
            file.write(torn)
    write(tmp_path / "stopped", done + 1, 8, done)
    write(tmp_path / "stopped", 9, 9, 8)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_without_samples_only_metrics_are_written(tmp_path: Path) -> None:
    StepLog(tmp_path, 0, {"a": 1}, log_samples=False).close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
