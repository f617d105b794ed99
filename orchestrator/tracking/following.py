"""Pass a run's records to one tracker, whatever the tracker does."""

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

from orchestrator.tracking.base import RunIdentity, Tracker
from orchestrator.tracking.records import RunRecords
from workers.events import log_event

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
            self._tell(f"{type(error).__name__}: {error}".strip().splitlines()[0])

    def _tell(self, what: str) -> None:
        run = self._records.run
        message = f"{self._kind}: {what[:_MAX_REASON_LENGTH]}; the run continues without it (see raymix.log)"
        with suppress(OSError):
            log_event(run.path, run.metrics.last_step, "tracking", message)

    def _pass_on(self, is_over: bool = False) -> None:
        with suppress(OSError):  # a stalled file system: the next look catches up
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
