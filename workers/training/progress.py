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

_LAST = 50  # steps, and forward passes, whose median counts
_FEWEST_PASSES = 10  # that have a median: the first take longer than others
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
    median_pass_s: float | None
    """Median duration of the last forward passes; None before the tenth."""

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
        self._step_seconds: deque[float] = deque(maxlen=_LAST)
        self._passes: deque[tuple[Any, Any]] = deque(maxlen=_LAST)
        self._pass_began: Any = None

    def enter(self, phase: str, step: int) -> None:
        """A phase begins, after `step` steps or, while training, in it."""
        self._phase, self._step, self._seen = phase, step, self._clock()

    def end_step(self, seconds: float) -> None:
        """An optimizer step is done."""
        self._step_seconds.append(seconds)
        self._seen = self._clock()

    def follow(self, module: "nn.Module") -> None:
        """Take every forward pass of the module for a sign of progress, and note how long it takes, from now on."""
        module.register_forward_pre_hook(self._begin_pass)
        module.register_forward_hook(self._end_pass)

    def read(self) -> Progress:
        seconds, passes = list(self._step_seconds), _durations(list(self._passes))
        return Progress(
            rank=self._rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            phase=self._phase,
            step=self._step,
            quiet_s=self._clock() - self._seen,
            median_step_s=statistics.median(seconds) if seconds else None,
            median_pass_s=statistics.median(passes) if len(passes) >= _FEWEST_PASSES else None,
        )

    def _begin_pass(self, *_: Any) -> None:
        self._pass_began = _now()

    def _end_pass(self, *_: Any) -> None:
        self._passes.append((self._pass_began, _now()))
        self._seen = self._clock()


def _now() -> Any:
    """A moment of the device: on a GPU a forward pass returns long before it is computed."""
    import torch

    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _durations(passes: list[tuple[Any, Any]]) -> list[float]:
    """Seconds of each pass that the device has computed."""
    if passes and isinstance(passes[0][0], float):
        return [end - begin for begin, end in passes]
    return [begin.elapsed_time(end) / 1000 for begin, end in passes if end.query()]


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
