"""The state of a run as far as its folder shows it, and its health: restarts, pace, checkpoints, unreadable data."""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from orchestrator.runs.folder import RunFolder, is_finished
from orchestrator.views.format import format_duration, format_workers
from workers.storage.addresses import uri_of

State = Literal["running", "waiting", "finished", "failed", "stopped early", "stopped", "unreadable"]
"""Stopped early: by a search, and not to be resumed. Unreadable, in the list: some of its files cannot be used."""

ENDED: frozenset[State] = frozenset({"finished", "stopped early"})

SILENCE_SECONDS = 60.0
SILENCE_STEPS = 5
MAX_PROBLEMS = 20  # shown
SLOW_STEP = 3.0  # times the median
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
    """Whether another machine may see this folder: one on object storage, or not on a local disk, whose major device
    number is not zero."""
    try:
        return uri_of(folder) is not None or os.major(folder.stat().st_dev) == 0
    except OSError:
        return False


@dataclass(frozen=True)
class Fact:
    """A heading and its value; `is_worrying` if it needs attention."""

    name: str
    value: str
    is_worrying: bool = False


def health_facts(run: RunFolder, state: State, process: int | None) -> list[Fact]:
    """The first things to check if something seems wrong."""
    num_attempts = max(1, sum(event.kind == "attempt" for event in run.events))
    non_finite = sum(event.kind.startswith("non_finite") for event in run.events)
    num_workers, stage = run.setting("cluster", "num_workers"), run.setting("training", "deepspeed", "zero_stage")
    workers = format_workers(num_workers) + ("" if stage is None else f", ZeRO-{stage}")
    elsewhere = "on another machine" if state in ("running", "waiting") else "not running"
    driver = elsewhere if process is None else f"process {process}"
    facts = [
        Fact("Driver", driver, state == "failed"),
        Fact("Workers", workers),
        Fact("Restarts", f"{num_attempts - 1:,}", num_attempts > 1),
        *_pace(run),
        *_evaluation(run),
        Fact("Last checkpoint", _last_checkpoint(run)),
        Fact("Not a number", f"{non_finite:,}", non_finite > 0),
        *_bad_rows(run),
    ]
    facts += [
        Fact("Unreadable", f"{name}: {reason}", True) for name, reason in list(run.problems.items())[:MAX_PROBLEMS]
    ]
    if run.num_unreadable_lines:
        facts.append(Fact("Unreadable lines", f"{run.num_unreadable_lines:,}", True))
    return facts


def _pace(run: RunFolder) -> list[Fact]:
    seconds = run.metrics.column("seconds")
    seconds = seconds[np.isfinite(seconds)]
    if not seconds.size:
        return []
    recent, median = float(run.metrics.recent("seconds").mean()), float(np.median(seconds))
    slow = int((seconds > SLOW_STEP * median).sum())
    return [
        Fact("Seconds per step", f"{recent:.2f} now, {median:.2f} median", recent > SLOW_STEP * median),
        Fact("Slow steps", f"{slow:,}, longest {format_duration(float(seconds.max()))}"),
    ]


def _evaluation(run: RunFolder) -> list[Fact]:
    seconds = [item.evaluation_seconds + item.signal_seconds for item in run.feedback]
    measured = [value for value in seconds if value > 0 and math.isfinite(value)]
    return [Fact("Last evaluation", f"{measured[-1]:.1f} s")] if measured else []


def _last_checkpoint(run: RunFolder) -> str:
    try:
        steps = [path.name.removeprefix("step-") for path in (run.path / "checkpoints").glob("step-[0-9]*")]
    except OSError:
        return "-"
    return f"step {max(map(int, filter(str.isdecimal, steps)), default=0):,}" if steps else "-"


def _bad_rows(run: RunFolder) -> list[Fact]:
    counts = [domain.num_bad_rows or 0 for domain in run.summary.domains.values()] if run.summary else []
    noted = [event for event in run.events if event.kind == "bad_rows"]
    if not counts and not noted:
        return []
    return [Fact("Bad rows", f"{sum(counts):,}" if counts else noted[-1].message, any(counts) or bool(noted))]
