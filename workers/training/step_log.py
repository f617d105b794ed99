"""metrics.jsonl and samples.jsonl: one line per step, written by rank 0 at the end of the step.

A resumed run truncates both files to its checkpoint, so that they read as if it had never stopped.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import torch.distributed as dist

from workers.clock import utc_now
from workers.data.batches import Batch


class StepLog:
    """Appends to the run's logs; ranks other than 0 only take part in gathering samples.

    Lines of steps after `num_steps_done` are removed. `row_counts` are the rows in one pass over each domain, in order;
    None, which the owner may change, as long as they are not known. Of `num_slices` ranks that share their rows, the
    first one's samples are written.
    """

    def __init__(
        self,
        folder: Path,
        num_steps_done: int,
        row_counts: Mapping[str, int | None],
        log_samples: bool,
        num_slices: int = 1,
    ) -> None:
        self._row_counts = row_counts
        self._is_writer = dist.get_rank() == 0
        self._metrics = _open(folder / "metrics.jsonl", num_steps_done) if self._is_writer else None
        self._samples = _open(folder / "samples.jsonl", num_steps_done) if self._is_writer and log_samples else None
        self._log_samples = log_samples
        self._num_slices = num_slices

    def write(self, batch: Batch, loss_sum_D: list[float], num_tokens_D: list[int], values: dict[str, Any]) -> None:
        """Write one step: losses from sums and counts over all ranks, rows, and further `values` by name."""
        if self._log_samples:
            self._write_samples(batch)
        if self._metrics is None:
            return
        names = list(self._row_counts)
        line = {
            "step": batch.step,
            "time": utc_now(),
            "loss_nats": sum(loss_sum_D) / sum(num_tokens_D),
            "domain_loss_nats": {
                name: total / count if count else None
                for name, total, count in zip(names, loss_sum_D, num_tokens_D, strict=True)
            },
            "num_tokens": batch.global_tokens,
            "num_loss_tokens": sum(num_tokens_D),
            "weights_version": batch.weights_version,
            "rows": dict(zip(names, batch.global_rows_D.tolist(), strict=True)),
            "epochs": {
                name: seen / rows if rows else None
                for (name, rows), seen in zip(self._row_counts.items(), batch.domain_rows_seen_D.tolist(), strict=True)
            },
            **values,
        }
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()

    def flush(self) -> None:
        for file in (self._metrics, self._samples):
            if file is not None:
                os.fsync(file.fileno())

    def close(self) -> None:
        for file in (self._metrics, self._samples):
            if file is not None:
                file.close()

    def _write_samples(self, batch: Batch) -> None:
        """Write what every rank reports to have trained on: an audit, not a copy of the schedule."""
        mine = (batch.domain_B.tolist(), batch.row_B.tolist())
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.gather_object(mine, everyone if self._is_writer else None)
        if self._samples is None:
            return
        for rank, (domains, rows) in enumerate(everyone[:: self._num_slices]):
            for index, name in enumerate(self._row_counts):
                drawn = [row for row, domain in zip(rows, domains, strict=True) if domain == index]
                if drawn:
                    line = {"step": batch.step, "rank": rank, "domain": name, "rows": drawn}
                    self._samples.write(json.dumps(line) + "\n")
        self._samples.flush()


def _open(path: Path, num_steps_done: int) -> TextIO:
    """Open for appending after removing lines of later steps and a line left incomplete by a crash."""
    keep = 0
    if path.exists():
        with path.open("rb") as written:
            for line in written:
                if not line.endswith(b"\n") or _step_of(line) > num_steps_done:
                    break
                keep += len(line)
    file = path.open("a")
    file.truncate(keep)
    return file


def _step_of(line: bytes) -> float:
    """The step of a line; infinite if damaged, as after a power failure: lines of committed steps were flushed."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
