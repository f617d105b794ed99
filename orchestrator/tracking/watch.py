"""Threads of the driver that look for what is new in its runs' folders, for as long as the runs are trained.

A thread for each kind of tracker: a server that does not answer holds up neither the training nor the other trackers.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from orchestrator.config.tracking import MLflowConfig, TensorBoardConfig, TrackerConfig, WandbConfig
from orchestrator.tracking.base import RunIdentity, Tracker
from orchestrator.tracking.following import RunFollower
from workers.events import log_event

POLL_SECONDS = 2.0
CLOSING_SECONDS = 60.0  # what trackers are given for their last values; they must not hold up the run's end for longer


@dataclass(frozen=True)
class TrackedRun:
    """A run that is to be trained, and its trackers."""

    folder: Path
    run_id: str
    trackers: tuple[TrackerConfig, ...] = ()


def open_tracker(settings: TrackerConfig, run: RunIdentity) -> Tracker:
    """The run's tracker. Its package is imported only here; that takes seconds."""
    match settings:
        case TensorBoardConfig():
            from orchestrator.tracking.tensorboard import TensorBoardTracker

            return TensorBoardTracker(settings, run)
        case MLflowConfig():
            from orchestrator.tracking.mlflow import MLflowTracker

            return MLflowTracker(settings, run)
        case WandbConfig():
            from orchestrator.tracking.wandb import WandbTracker

            return WandbTracker(settings, run)


@contextmanager
def track(runs: Sequence[TrackedRun]) -> Iterator[None]:
    """Follow these runs while they are trained, inside a Ray session."""
    from orchestrator.tracking.prometheus import PrometheusMetrics

    followers: dict[str, list[Follower]] = {"prometheus": [PrometheusMetrics(run.folder) for run in runs]}
    for run in runs:
        for settings in run.trackers:
            kind = settings.type
            follower = RunFollower(run.folder, run.run_id, kind, partial(open_tracker, settings))
            followers.setdefault(kind, []).append(follower)
    watches = [Watch(kind, each) for kind, each in followers.items()]
    for watch in watches:
        watch.start()
    try:
        yield
    finally:
        _end(watches, runs)


class Follower(Protocol):
    """One run on its way to one place. Neither method raises anything."""

    def look(self) -> None:
        """Pass on what is new."""
        ...

    def end(self) -> None:
        """Pass on the last of it: the run is over, with its result or without."""
        ...


class Watch(threading.Thread):
    """Looks for all runs of a kind of tracker, until it is told to end.

    Args:
        kind: name of the tracker.
        followers: one for each run.
    """

    def __init__(self, kind: str, followers: Sequence[Follower]) -> None:
        super().__init__(name=f"track-{kind}", daemon=True)
        self.kind = kind
        self._followers = followers
        self._ending = threading.Event()

    def run(self) -> None:
        """See `Thread`."""
        while not self._ending.wait(POLL_SECONDS):
            for follower in self._followers:
                follower.look()
        for follower in self._followers:
            follower.end()

    def end(self) -> None:
        """Say that the runs are over; the thread ends once their last values are passed on."""
        self._ending.set()


def _end(watches: Sequence[Watch], runs: Sequence[TrackedRun]) -> None:
    for watch in watches:
        watch.end()
    until = time.monotonic() + CLOSING_SECONDS
    for watch in watches:
        watch.join(max(0.0, until - time.monotonic()))
        if watch.is_alive():
            message = f"{watch.kind}: did not take the last values within {CLOSING_SECONDS:.0f} s"
            for run in runs:
                if watch.kind in {settings.type for settings in run.trackers}:
                    with suppress(OSError):
                        log_event(run.folder, 0, "tracking", message)
