"""Many runs in the terminal, read from their files: the runs of a sweep, and the reference runs of a waiting run."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, TaskID, TextColumn
from rich.text import Text

from orchestrator.runs.failure import read_failure
from orchestrator.runs.folder import REFERENCE_PROGRESS_FILE, RunFolder
from orchestrator.runs.records import ReferenceCourse, ReferenceProgress
from orchestrator.views.format import format_duration, format_loss, printable
from orchestrator.views.summary import HARMFUL, in_a_word
from orchestrator.views.terminal import LiveView, progress_bars
from workers.bounded import read_object
from workers.clock import utc_now
from workers.durable import remove, write_durably
from workers.training.plan import TrainingPlan
from workers.validation.domain_losses import mean_loss

POLL_SECONDS = 0.5
_NOTE = "{task.fields[note]}"


class RunsView(LiveView):
    """A line for each run that ends, and bars for those in progress: `with RunsView(find_runs, 8, console): train()`.

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
        self._progress = progress_bars(console, MofNCompleteColumn(), TextColumn(_NOTE, markup=False))
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
            except (OSError, ValueError):  # a stalled file system, a damaged file: the next look catches up
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
            return f"ended early, after step {read_object(stopped).get('step')}"
        failure = read_failure(run.path)
        return None if failure is None else f"failed: {failure}"

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


class ReferenceView(LiveView):
    """A bar for each reference run, elsewhere a line for each evaluation: `with ReferenceView(...): train()`.

    The progress is also in a file in the folder of the waiting run, which the dashboard shows.

    Args:
        plans: domain -> plan of its reference run, for those not finished.
        console: receives the output.
        run_folder: folder of the waiting run, in which a file shows the progress meanwhile; None if no run waits.
    """

    def __init__(self, plans: Mapping[str, TrainingPlan], console: Console, run_folder: Path | None) -> None:
        self._num_steps = {name: plan.num_steps for name, plan in plans.items()}
        self._runs = {name: RunFolder(plan.folder) for name, plan in plans.items()}
        self._console, self._folder = console, run_folder
        self._told_up_to = dict.fromkeys(plans, 0)
        self._progress = progress_bars(console, MofNCompleteColumn(), TextColumn(_NOTE, markup=False))
        super().__init__(self._progress, POLL_SECONDS)
        self._bars: dict[str, TaskID] = {}
        self._pace_from: tuple[int, float] | None = None

    def _begin(self) -> None:
        for name, run in self._runs.items():
            run.refresh()
            # Evaluations printed by an earlier driver are not printed again.
            self._told_up_to[name] = max((feedback.step for feedback in run.feedback), default=0)
            self._bars[name] = self._progress.add_task(f"  {printable(name)}", total=self._num_steps[name], note="")
        self._num_done_before = self._num_done()
        self._show()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self._folder is not None:
            with suppress(OSError):
                remove(self._folder / REFERENCE_PROGRESS_FILE)

    def _look(self) -> None:
        if any([run.refresh() for run in self._runs.values()]):
            self._show()

    def _show(self) -> None:
        left, courses = self._seconds_left(), {}
        for name, run in self._runs.items():
            losses = [feedback.loss_nats(name) for feedback in run.feedback]
            step, total = run.metrics.last_step, self._num_steps[name]
            start, end = (_finite(losses[0]), _finite(losses[-1])) if losses else (None, None)
            courses[name] = ReferenceCourse(step=step, total_steps=total, loss_nats=end, loss_nats_base=start)
            note = f"loss {format_loss(end)}, base {format_loss(start)}" if losses else "waiting"
            note += "" if left is None else f", about {format_duration(left)} left in all"
            self._progress.update(self._bars[name], completed=step, note=note)
            newest = run.feedback[-1].step if run.feedback else 0
            if newest > self._told_up_to[name]:
                self._told_up_to[name] = newest
                if not self._console.is_terminal:
                    told = f"  {printable(name)}: step {newest:,}/{total:,}  {note}"
                    self._console.print(Text(told), soft_wrap=True)
        if self._folder is not None:
            progress = ReferenceProgress(time=utc_now(), seconds_left=left, domains=courses)
            with suppress(OSError):  # for display only
                write_durably(self._folder / REFERENCE_PROGRESS_FILE, progress.model_dump_json(indent=1).encode())

    def _num_done(self) -> int:
        return sum(run.metrics.last_step for run in self._runs.values())

    def _seconds_left(self) -> float | None:
        """Estimated by the common pace since the first step that was seen, because processes start slowly. None before
        that step."""
        num_done, now = self._num_done(), time.monotonic()
        if self._pace_from is None and num_done > self._num_done_before:
            self._pace_from = (num_done, now)
        if self._pace_from is None or num_done <= self._pace_from[0]:
            return None
        num_first, since = self._pace_from
        return (sum(self._num_steps.values()) - num_done) * (now - since) / (num_done - num_first)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
