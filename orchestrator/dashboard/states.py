"""The state of a run, as far as its folder shows it."""

import os
import time
from pathlib import Path
from typing import Literal

from orchestrator.runs.folder import is_finished

State = Literal["running", "waiting", "finished", "failed", "stopped early", "stopped"]
"""Stopped early: by a search, and not to be resumed."""

ENDED: frozenset[State] = frozenset({"finished", "stopped early"})

SILENCE_SECONDS = 60.0
SILENCE_STEPS = 5
_LOCKS = Path("/proc/locks")

FileKey = tuple[int, int]
"""Device and inode."""


def lock_holders() -> dict[FileKey, int]:
    """The processes that hold a file lock on this machine, by file. Reads only: taking a lock to test it would stop a
    driver that starts at that moment."""
    holders: dict[FileKey, int] = {}
    try:
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return holders
    for line in lines:
        fields = line.split()
        if len(fields) >= 6 and fields[1] == "FLOCK":  # a process that waits for a lock has "->" there
            major, minor, inode = fields[5].split(":")
            holders[os.makedev(int(major, 16), int(minor, 16)), int(inode)] = int(fields[4])
    return holders


def driver_process(folder: Path, holders: dict[FileKey, int]) -> int | None:
    """The process on this machine that drives the run; None if none is visible."""
    try:
        stat = (folder / ".driver.lock").stat()
    except OSError:
        return None
    return holders.get((stat.st_dev, stat.st_ino))


def run_state(
    folder: Path, holders: dict[FileKey, int], has_begun: bool, written_at: float, seconds_per_step: float
) -> State:
    """The state of the run.

    Args:
        has_begun: whether it has trained a step.
        written_at: when its files were last written, in seconds since the epoch.
        seconds_per_step: recent pace; NaN if not known.

    The lock of a driver on another machine is not visible here. On shared storage a run counts as running until it has
    not written for a minute, or for the time of five steps if that is longer.
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
    """Whether another machine may see this folder: local disks have a nonzero major device number."""
    try:
        return os.major(folder.stat().st_dev) == 0
    except OSError:
        return False
