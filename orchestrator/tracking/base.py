"""What a tracker is, and what it knows of the run that it writes down."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

from orchestrator.tracking.records import StepRecord
from workers.durable import write_durably


@dataclass(frozen=True)
class RunIdentity:
    """Which run it is."""

    folder: Path
    run_id: str
    name: str
    config: dict[str, Any]
    """The resolved configuration."""


def wall_time(record: StepRecord) -> float:
    """The time of day that a tracker is to show of a step, in seconds since the epoch: now, where it is not known."""
    return record.time if isfinite(record.time) else time.time()


class Tracker(Protocol):
    """One run in one tracker, new or gone on with. Whatever it raises is told once, and the run goes on without it."""

    last_step: int
    """The last step that it holds; -1 before the first."""

    def log(self, records: Sequence[StepRecord]) -> None:
        """Take in the next steps, all of them later than `last_step`, which moves on."""
        ...

    def close(self, is_finished: bool) -> None:
        """Write out what waits; `is_finished`: the run has its result, else it failed or was stopped."""
        ...


class LastStep:
    """The last step that a tracker without a memory of its own holds, kept in a small file.

    It counts for one place only: a run that goes on elsewhere is written down there from its first step.
    """

    def __init__(self, path: Path, place: str) -> None:
        self._path, self._place = path, place

    def read(self) -> int:
        """The step; -1 where nothing is known."""
        try:
            known = json.loads(self._path.read_text())
            return int(known["last_step"]) if known["place"] == self._place else -1
        except (OSError, ValueError, KeyError, TypeError):  # none yet, or torn
            return -1

    def write(self, step: int) -> None:
        """Keep it."""
        write_durably(self._path, json.dumps({"place": self._place, "last_step": step}).encode())
