"""The preparation of domains in the terminal: the share that is done, rows per second and the time left of each."""

import time

from rich.console import Console
from rich.progress import TaskID, TaskProgressColumn, TextColumn
from rich.text import Text

from orchestrator.views.format import format_count, format_duration, printable
from orchestrator.views.terminal import LiveView, progress_bars

_SECONDS_PER_LINE = 60.0


class PreparationView(LiveView):
    """Bars in a terminal; elsewhere a line for each domain when it is done, and at most one a minute until then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress = progress_bars(console, TaskProgressColumn(), TextColumn("{task.fields[pace]}", markup=False))
        super().__init__(self._progress)
        self._tasks: dict[str, TaskID] = {}
        self._finished: set[str] = set()
        self._began: dict[str, float] = {}
        self._last_part = self._last_line = time.monotonic()

    def update(self, done: float, total: float, domain: str, num_rows: int) -> None:
        """Show what is done of a domain, and in how many rows: nothing at first, and then after each part of it."""
        now = time.monotonic()
        if done > 0:
            # Domains are prepared one after the other: a domain begins where another one's part was the last.
            self._began.setdefault(domain, self._last_part)
            self._last_part = now
        seconds = now - self._began.get(domain, now)
        rate = f"{format_count(num_rows / seconds if seconds > 0 else None)} rows/s"
        left = f"{format_duration(seconds * (total - done) / done)} left" if done > 0 else ""
        is_done = done >= (1 - 1e-9) * total  # parts are added up in any order, so the sums may differ by rounding
        if domain not in self._tasks:
            self._tasks[domain] = self._progress.add_task(printable(domain), total=total, pace="")
        pace = "" if not num_rows else rate if is_done else f"{rate}, {left}"
        self._progress.update(self._tasks[domain], completed=done, total=total, pace=pace)
        if self.console.is_terminal or domain in self._finished:
            return
        if is_done:
            self._finished.add(domain)
            self._print(f"prepared {printable(domain)}: {format_count(num_rows)} rows, {rate}", now)
        elif num_rows and now - self._last_line >= _SECONDS_PER_LINE:
            self._print(f"preparing {printable(domain)}: {done / total:.0%}, {rate}, {left}", now)

    def _print(self, line: str, now: float) -> None:
        self._last_line = now
        self.console.print(Text(line), soft_wrap=True)
