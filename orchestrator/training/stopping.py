"""A clean stop, after a checkpoint, when the user, a scheduler or a job manager sends a signal."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOK_EVERY_SECONDS = 0.2  # joining a thread without a timeout would block signals


def run_until_stopped(
    work: Callable[[], object], ask_to_stop: Callable[[], object], stopping: threading.Event | None = None
) -> None:
    """Do work that can be asked to end early: by the first SIGTERM or Ctrl-C; the second interrupts at once.

    The work runs in a separate thread, so that the caller's thread can ask. Signals arrive in the main thread only;
    in other threads, setting `stopping` is the only way to ask.

    Raises:
        KeyboardInterrupt: at the second signal; the work may still be running.
        BaseException: whatever the work raised.
    """
    stopping = stopping or threading.Event()
    failures: list[BaseException] = []

    def work_here() -> None:
        try:
            work()
        except BaseException as error:  # raised again in the waiting thread
            failures.append(error)

    thread = threading.Thread(target=work_here, name="training", daemon=True)
    with _signals_set(stopping):
        thread.start()
        is_asked = False
        while thread.is_alive():
            thread.join(_LOOK_EVERY_SECONDS)
            if stopping.is_set() and not is_asked:
                is_asked = True
                ask_to_stop()
    if failures:
        raise failures[0]


@contextmanager
def _signals_set(stopping: threading.Event) -> Iterator[None]:
    """The first signal sets the event; does nothing outside the main thread, where no signals arrive."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, _interrupt)
        stopping.set()

    before = {each: signal.signal(each, on_signal) for each in _SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
