"""Signs of progress of one rank, and reports of them while the rank may be unable to do anything else.

Every phase that begins and every forward pass is a sign of progress. A thread reports the newest one, so a rank that
waits in a collective still reports, and only a process that does not run at all falls silent.
"""

import os
import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_STEPS = 50  # whose median counts
_STEADY = ("training", "evaluating")  # phases in which a forward pass follows the other


@dataclass(frozen=True)
class Progress:
    """What a rank reports about itself."""

    rank: int
    host: str
    pid: int
    phase: str
    step: int
    quiet_s: float
    """Seconds since the last sign of progress."""
    median_step_s: float | None
    """Median duration of the last steps; None before the first."""

    @property
    def is_steady(self) -> bool:
        """Whether the rank is in a phase whose signs of progress come at most a step apart."""
        return self.phase in _STEADY and self.median_step_s is not None

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} (pid {self.pid}), last reported as {self.phase} at step {self.step},"


class ProgressMeter:
    """Where a rank is in its training; safe to read from another thread."""

    def __init__(self, rank: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._rank = rank
        self._clock = clock
        self._phase, self._step = "starting", 0
        self._seen = clock()
        self._step_seconds: deque[float] = deque(maxlen=_STEPS)

    def enter(self, phase: str, step: int) -> None:
        """A phase begins, after `step` steps or, while training, in it."""
        self._phase, self._step, self._seen = phase, step, self._clock()

    def end_step(self, seconds: float) -> None:
        """An optimizer step is done."""
        self._step_seconds.append(seconds)
        self._seen = self._clock()

    def follow(self, module: "nn.Module") -> None:
        """Take every forward pass of the module for a sign of progress from now on."""
        module.register_forward_hook(self._see)

    def read(self) -> Progress:
        seconds = list(self._step_seconds)
        return Progress(
            rank=self._rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            phase=self._phase,
            step=self._step,
            quiet_s=self._clock() - self._seen,
            median_step_s=statistics.median(seconds) if seconds else None,
        )

    def _see(self, *_: Any) -> None:
        self._seen = self._clock()


@contextmanager
def reporting(meter: ProgressMeter, report: Callable[[Progress], object], every_s: float) -> Iterator[None]:
    """Meanwhile report the meter's progress from a thread; a report that fails is followed by the next one."""
    is_over = threading.Event()

    def work() -> None:
        while not is_over.is_set():
            with suppress(Exception):  # the receiver may be restarting; if it is gone for good, the training learns it
                report(meter.read())
            is_over.wait(every_s)

    thread = threading.Thread(target=work, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
