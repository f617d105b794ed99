"""Looking at files again and again beside other work."""

import threading
from collections.abc import Callable
from typing import Self


class Polling:
    """A thread that looks every so many seconds; what happens after the last look is the caller's to see."""

    def __init__(self, look: Callable[[], None], seconds: float, name: str) -> None:
        self._look, self._seconds = look, seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> Self:
        """Look for the first time after `seconds`."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Return when no look is under way and none will come."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            self._look()
