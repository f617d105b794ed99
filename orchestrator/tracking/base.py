"""What a tracker is, and what it knows about its run."""

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
    folder: Path
    run_id: str
    name: str
    config: dict[str, Any]
    """The resolved configuration."""


def wall_time(record: StepRecord) -> float:
    """The time to log for a step, in seconds since the epoch; now, if it is not known."""
    return record.time if isfinite(record.time) else time.time()


class Tracker(Protocol):
    """One run in one tracker, new or resumed. If it raises, that is reported once and the run continues without it."""

    last_step: int
    """The last step logged; -1 before the first."""

    def log(self, records: Sequence[StepRecord]) -> None:
        """Log the next steps, all later than `last_step`, and advance `last_step`."""

    def close(self, is_finished: bool) -> None:
        """Flush and close; `is_finished`: the run has its result, otherwise it failed or was stopped."""


class LastStep:
    """The last step logged, kept in a small file for trackers that do not store it.

    It is valid for one place only: a run that is resumed with another place is logged there from its first step.
    """

    def __init__(self, path: Path, place: str) -> None:
        self._path, self._place = path, place

    def read(self) -> int:
        """The step; -1 if it is not known."""
        try:
            known = json.loads(self._path.read_text())
            return int(known["last_step"]) if known["place"] == self._place else -1
        except (OSError, ValueError, KeyError, TypeError):  # none yet, or truncated
            return -1

    def write(self, step: int) -> None:
        write_durably(self._path, json.dumps({"place": self._place, "last_step": step}).encode())
