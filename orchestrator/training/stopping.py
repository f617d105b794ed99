"""The clean end that a person, a scheduler or a job manager asks for by a signal: a checkpoint first."""

import signal
import threading
from collections.abc import Callable
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOK_EVERY_SECONDS = 0.2  # a thread that is waited for without a limit lets no signal through


def run_until_stopped(work: Callable[[], object], ask_to_stop: Callable[[], object]) -> None:
    """Do some work that can be asked to end early. The first SIGTERM or Ctrl-C asks, the second interrupts at once.

    The work is done in a thread of its own, so that whoever waits for signals, the main thread, is free to ask. Outside
    the main thread no signal arrives, and the work is simply done.

    Raises:
        KeyboardInterrupt: at the second signal; the work may still be running.
        BaseException: whatever the work raised.
    """
    if threading.current_thread() is not threading.main_thread():
        work()
        return
    failures: list[BaseException] = []

    def work_here() -> None:
        try:
            work()
        except BaseException as error:  # raised again where it is waited for
            failures.append(error)

    def on_signal(number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, _interrupt)
        ask_to_stop()

    before = {each: signal.signal(each, on_signal) for each in _SIGNALS}
    thread = threading.Thread(target=work_here, name="training", daemon=True)
    try:
        thread.start()
        while thread.is_alive():
            thread.join(_LOOK_EVERY_SECONDS)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if failures:
        raise failures[0]


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
