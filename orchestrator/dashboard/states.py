"""Whether a run is running, as far as its folder tells."""

import os
import time
from pathlib import Path
from typing import Literal

from orchestrator.runs.folder import is_finished

State = Literal["running", "waiting", "finished", "failed", "stopped early", "stopped"]
"""Stopped early: a search saw enough of this trial; nothing goes on there."""

ENDED: frozenset[State] = frozenset({"finished", "stopped early"})

SILENCE_SECONDS = 60.0
SILENCE_STEPS = 5
_LOCKS = Path("/proc/locks")

FileKey = tuple[int, int]
"""Device and inode."""


def lock_holders() -> dict[FileKey, int]:
    """The processes that hold a file lock on this machine, by the file. Only looks: taking a lock to see whether it is
    free would stop a driver that starts at that moment."""
    holders: dict[FileKey, int] = {}
    try:
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return holders
    for line in lines:
        fields = line.split()
        if len(fields) >= 6 and fields[1] == "FLOCK":  # a process that waits for one has "->" there
            major, minor, inode = fields[5].split(":")
            holders[os.makedev(int(major, 16), int(minor, 16)), int(inode)] = int(fields[4])
    return holders


def driver_process(folder: Path, holders: dict[FileKey, int]) -> int | None:
    """The process on this machine that drives the run, None where there is none to be seen."""
    try:
        stat = (folder / ".driver.lock").stat()
    except OSError:
        return None
    return holders.get((stat.st_dev, stat.st_ino))


def run_state(
    folder: Path, holders: dict[FileKey, int], has_begun: bool, written_at: float, seconds_per_step: float
) -> State:
    """What the run is doing.

    Args:
        folder: of the run.
        holders: from `lock_holders`.
        has_begun: whether it has trained a step.
        written_at: when its files were last written, in seconds since the epoch.
        seconds_per_step: of late; NaN where that is not known.

    A driver on another machine holds its lock there. On storage that machines share a run counts as running while it
    writes: until it was silent for a minute, or for five steps where these are longer.
    """
    if is_finished(folder):
        return "finished"
    if (folder / "failure.json").exists():
        return "failed"
    if driver_process(folder, holders) is not None:
        return "running" if has_begun else "waiting"
    if (folder / "stopped.json").exists():
        return "stopped early"
    patience = max(SILENCE_SECONDS, SILENCE_STEPS * seconds_per_step if seconds_per_step > 0 else 0.0)
    return "running" if _may_be_elsewhere(folder) and time.time() - written_at < patience else "stopped"


def _may_be_elsewhere(folder: Path) -> bool:
    """Whether another machine may see this folder too: a disk of this machine has a device number of its own."""
    try:
        return os.major(folder.stat().st_dev) == 0
    except OSError:
        return False
