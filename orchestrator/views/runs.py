"""Many runs in the terminal: a line for each run that ends, and bars for those in progress."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, TaskID
from rich.text import Text

from orchestrator.runs.folder import RunFolder
from orchestrator.runs.losses import mean_loss
from orchestrator.views.format import format_duration, format_loss, printable
from orchestrator.views.live import LiveView, note_column, progress_bars
from orchestrator.views.verdict import HARMFUL, in_a_word

POLL_SECONDS = 0.5


class RunsView(LiveView):
    """A view of runs, read from their files only: `with RunsView(find_runs, 8, console): train()`.

    Args:
        find_runs: returns folder -> number of steps for all runs so far; called repeatedly.
        num_runs: number of runs in the end.
        console: receives the output.
    """

    def __init__(self, find_runs: Callable[[], Mapping[Path, int]], num_runs: int, console: Console) -> None:
        self.console = console
        self._find_runs, self._num_runs = find_runs, num_runs
        self._num_steps: dict[Path, int] = {}
        self._running: dict[Path, RunFolder] = {}
        self._num_ended = 0
        self._began = time.monotonic()
        self._progress = progress_bars(console, MofNCompleteColumn(), note_column())
        super().__init__(self._progress, POLL_SECONDS)
        self._all = self._progress.add_task("all runs", total=num_runs, note="")
        self._bars: dict[Path, TaskID] = {}

    def _begin(self) -> None:
        self._find_new()
        for run in self._running.values():
            run.refresh()  # existing files are not news

    def _find_new(self) -> None:
        for folder, num_steps in self._find_runs().items():
            if folder not in self._num_steps:
                self._num_steps[folder] = num_steps
                self._running[folder] = RunFolder(folder)

    def _look(self) -> None:
        self._find_new()
        for folder, run in list(self._running.items()):
            try:
                is_news = run.refresh()
                outcome = self._outcome(run)
            except (OSError, ValueError):  # a stalled file system, a half-written file: the next look catches up
                continue
            if outcome is not None:
                self._end(folder, outcome)
            elif is_news:
                self._show_under_way(folder, run)

    def _outcome(self, run: RunFolder) -> str | None:
        """How the run ended; None if it has not."""
        if run.summary is not None:
            end, seconds = run.summary.mean_loss_nats.end, format_duration(run.summary.seconds)
            harm = f", {in_a_word(run.summary.verdict)}" if run.summary.verdict in HARMFUL else ""
            return f"mean loss {format_loss(end)}{harm}, {seconds} of training"
        if (stopped := run.path / "stopped.json").exists():
            return f"ended early, after step {json.loads(stopped.read_text())['step']}"
        failure = run.path / "failure.json"
        return f"failed: {json.loads(failure.read_text())['message']}" if failure.exists() else None

    def _end(self, folder: Path, outcome: str) -> None:
        name = self._running.pop(folder).name
        self._num_ended += 1
        if folder in self._bars:
            self._progress.remove_task(self._bars.pop(folder))
        elapsed = time.monotonic() - self._began
        num_left = self._num_runs - self._num_ended
        left = format_duration(elapsed / self._num_ended * num_left) if num_left > 0 else None
        self._progress.update(self._all, completed=self._num_ended, note=f"about {left} left" if left else "")
        place = f"[{self._num_ended}/{self._num_runs}]"
        self.console.print(Text(f"{place} {printable(name)}: {printable(outcome)}"), soft_wrap=True)

    def _show_under_way(self, folder: Path, run: RunFolder) -> None:
        if folder not in self._bars:
            self._bars[folder] = self._progress.add_task(printable(run.name), total=self._num_steps[folder], note="")
        feedback = run.feedback
        note = f"mean loss {format_loss(mean_loss(map(feedback[-1].loss_nats, run.domains)))}" if feedback else ""
        self._progress.update(self._bars[folder], completed=run.metrics.last_step, note=note)
