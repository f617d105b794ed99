"""Threads of the driver that follow the folders of its runs while they train.

Each kind of tracker has a thread, so a server that does not respond delays neither the training nor other trackers.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol

from orchestrator.config.tracking import MLflowConfig, TensorBoardConfig, TrackerConfig, WandbConfig
from orchestrator.tracking.base import RunIdentity, RunRecords, Tracker
from workers.events import log_event

POLL_SECONDS = 2.0
CLOSING_SECONDS = 60.0  # for a tracker's last values; it must not delay the end of the run any longer
MAX_RECORDS = 500  # passed at once
_MAX_REASON_LENGTH = 300
_log = logging.getLogger(__name__)


class RunFollower:
    """Passes a run's records to a tracker, which `open_tracker` creates or resumes with the first of them."""

    def __init__(self, folder: Path, run_id: str, kind: str, open_tracker: Callable[[RunIdentity], Tracker]) -> None:
        self._records = RunRecords(folder)
        self._run_id, self._kind = run_id, kind
        self._open = open_tracker
        self._tracker: Tracker | None = None
        self._is_done = False

    def look(self) -> None:
        """Pass on new records; with the run's result, close the tracker."""
        self._try(self._pass_on)

    def end(self) -> None:
        """Pass on the last records, now that nobody writes any more, and close the tracker."""
        self._try(partial(self._pass_on, is_over=True))
        if self._tracker is not None:
            self._try(self._close)

    def _try(self, action: Callable[[], None]) -> None:
        if self._is_done:
            return
        try:
            action()
        except Exception as error:  # third-party code and servers must never end a training
            self._is_done = True
            _log.warning("%s: %s", self._records.run.path, self._kind, exc_info=True)
            reason = f"{type(error).__name__}: {error}".strip().splitlines()[0][:_MAX_REASON_LENGTH]
            message = f"{self._kind}: {reason}; the run continues without it (see raymix.log)"
            with suppress(OSError):
                log_event(self._records.run.path, self._records.run.metrics.last_step, "tracking", message)

    def _pass_on(self, is_over: bool = False) -> None:
        self._records.refresh(is_over)
        run = self._records.run
        if self._tracker is None and self._records.has_begun:
            self._tracker = self._open(RunIdentity(run.path, self._run_id, run.name, run.config))
        if self._tracker is None:
            return
        records = self._records.after(self._tracker.last_step)
        while batch := list(islice(records, MAX_RECORDS)):
            self._tracker.log(batch)
        if run.summary is not None:
            self._close()

    def _close(self) -> None:
        assert self._tracker is not None
        self._is_done = True
        self._tracker.close(self._records.run.summary is not None)


@dataclass(frozen=True)
class TrackedRun:
    folder: Path
    run_id: str
    trackers: tuple[TrackerConfig, ...] = ()


def open_tracker(settings: TrackerConfig, run: RunIdentity) -> Tracker:
    """The run's tracker. Its package, which takes seconds to import, is imported only here."""
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
    """Follow these runs while they train; needs a Ray session."""
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
    """Passes one run to one destination. Neither method raises."""

    def look(self) -> None: ...
    def end(self) -> None: ...  # the run is over, with or without a result


class Watch(threading.Thread):
    """Calls the followers of one kind of tracker, one for each run, until `end`."""

    def __init__(self, kind: str, followers: Sequence[Follower]) -> None:
        super().__init__(name=f"track-{kind}", daemon=True)
        self.kind = kind
        self._followers = followers
        self._ending = threading.Event()

    def run(self) -> None:
        while not self._ending.wait(POLL_SECONDS):
            for follower in self._followers:
                follower.look()
        for follower in self._followers:
            follower.end()

    def end(self) -> None:
        """Announce that the runs are over; the thread ends once their last values are passed on."""
        self._ending.set()


def _end(watches: Sequence[Watch], runs: Sequence[TrackedRun]) -> None:
    for watch in watches:
        watch.end()
    until = time.monotonic() + CLOSING_SECONDS
    for watch in watches:
        watch.join(max(0.0, until - time.monotonic()))
        if watch.is_alive():
            message = f"{watch.kind}: did not accept the last values within {CLOSING_SECONDS:.0f} s"
            for run in runs:
                if watch.kind in {settings.type for settings in run.trackers}:
                    with suppress(OSError):
                        log_event(run.folder, 0, "tracking", message)
