"""What live views share: a display that is started and stopped, and a thread that keeps it up to date."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.table import Column


class LiveView:
    """A display that is shown while a `with` block runs; subclasses override `_begin` and `_look`.

    Args:
        display: bars or a live display; None for views that only print lines.
        poll_seconds: interval at which a thread calls `_look`; None for views that are updated by calls.
    """

    def __init__(self, display: Progress | Live | None, poll_seconds: float | None = None) -> None:
        self._display = display
        self._poll_seconds = poll_seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="live-view", daemon=True)

    def __enter__(self) -> Self:
        if self._display is not None:
            self._display.start()
        self._begin()
        if self._poll_seconds is not None:
            self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stopped.set()
        if self._poll_seconds is not None:
            self._thread.join()
        self._look()  # whatever was written after the thread's last look
        if self._display is not None:
            self._display.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Hide the display while others write to the terminal."""
        if self._display is not None:
            self._display.stop()
        yield
        if self._display is not None:
            self._display.start()

    def _begin(self) -> None:
        """Show the state at the start."""

    def _look(self) -> None:
        """Show what is new."""

    def _poll(self) -> None:
        while not self._stopped.wait(self._poll_seconds):
            self._look()


def progress_bars(console: Console, *columns: ProgressColumn) -> Progress:
    """Bars with the name of each task and these columns; shown in a terminal only. Other output is not captured."""
    name = TextColumn("{task.description}", markup=False, table_column=Column(overflow="ellipsis", no_wrap=True))
    bar = BarColumn(bar_width=30, complete_style="cyan", finished_style="green")
    is_off = not console.is_terminal
    return Progress(name, bar, *columns, console=console, disable=is_off, redirect_stdout=False, redirect_stderr=False)


def note_column() -> TextColumn:
    return TextColumn("{task.fields[note]}", markup=False)
