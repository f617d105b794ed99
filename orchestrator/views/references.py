"""How the reference trainings get on: bars in a terminal, elsewhere a line for each evaluation, and a file in the
folder of the run that waits for them, which the dashboard shows. Read from the trainings' own files, by a thread.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import MofNCompleteColumn, TaskID
from rich.text import Text

from orchestrator.runs.folder import REFERENCE_PROGRESS_FILE, RunFolder
from orchestrator.runs.records import ReferenceCourse, ReferenceProgress
from orchestrator.views.bars import note_column, progress_bars
from orchestrator.views.format import format_duration, format_loss, printable
from orchestrator.views.polling import Polling
from workers.clock import utc_now
from workers.durable import write_durably
from workers.training.plan import TrainingPlan

POLL_SECONDS = 0.5


class ReferenceView:
    """`with ReferenceView(plans, console, run_folder): train()`.

    Args:
        plans: domain -> the training of it alone, of those that are not done yet.
        console: where it writes.
        run_folder: of the run that waits, which is told in a file for as long as this lasts; None: nobody does.
    """

    def __init__(self, plans: Mapping[str, TrainingPlan], console: Console, run_folder: Path | None) -> None:
        self._num_steps = {name: plan.num_steps for name, plan in plans.items()}
        self._runs = {name: RunFolder(plan.folder) for name, plan in plans.items()}
        self._console, self._folder = console, run_folder
        self._polling = Polling(self._look, POLL_SECONDS, "reference-view")
        self._told_up_to = dict.fromkeys(plans, 0)
        self._progress = progress_bars(console, MofNCompleteColumn(), note_column())
        self._bars: dict[str, TaskID] = {}
        self._pace_from: tuple[int, float] | None = None

    def __enter__(self) -> Self:
        for name, run in self._runs.items():
            run.refresh()
            self._told_up_to[name] = max((feedback.step for feedback in run.feedback), default=0)  # by who began it
            bar = self._progress.add_task(f"  {printable(name)}", total=self._num_steps[name], note="")
            self._bars[name] = bar
        self._num_done_before = self._num_done()
        self._progress.start()
        self._show()
        self._polling.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._polling.stop()
        self._look()
        self._progress.stop()
        if self._folder is not None:
            with suppress(OSError):
                (self._folder / REFERENCE_PROGRESS_FILE).unlink(missing_ok=True)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Without bars, for others that write to the terminal."""
        self._progress.stop()
        yield
        self._progress.start()

    def _look(self) -> None:
        try:
            is_news = any([run.refresh() for run in self._runs.values()])
        except OSError:  # a file system that stalls: the next look tells
            return
        if is_news:
            self._show()

    def _show(self) -> None:
        left = self._seconds_left()
        for name, run in self._runs.items():
            step = run.metrics.last_step
            self._progress.update(self._bars[name], completed=step, note=self._note(name, left))
            newest = run.feedback[-1].step if run.feedback else 0
            if newest > self._told_up_to[name]:
                self._told_up_to[name] = newest
                if not self._console.is_terminal:
                    told = f"  {printable(name)}: step {newest:,}/{self._num_steps[name]:,}  {self._note(name, left)}"
                    self._console.print(Text(told), soft_wrap=True)
        if self._folder is not None:
            progress = ReferenceProgress(time=utc_now(), seconds_left=left, domains=self._courses())
            with suppress(OSError):  # it is shown, not needed
                write_durably(self._folder / REFERENCE_PROGRESS_FILE, progress.model_dump_json(indent=1).encode())

    def _note(self, name: str, seconds_left: float | None) -> str:
        losses = self._losses(name)
        loss = f"loss {format_loss(losses[-1])}, base {format_loss(losses[0])}" if losses else "waiting"
        return loss if seconds_left is None else f"{loss}, about {format_duration(seconds_left)} left in all"

    def _courses(self) -> dict[str, ReferenceCourse]:
        courses = {}
        for name, run in self._runs.items():
            losses = self._losses(name)
            courses[name] = ReferenceCourse(
                step=run.metrics.last_step,
                total_steps=self._num_steps[name],
                loss_nats=_finite(losses[-1]) if losses else None,
                loss_nats_base=_finite(losses[0]) if losses else None,
            )
        return courses

    def _losses(self, name: str) -> list[float]:
        return [feedback.loss_nats(name) for feedback in self._runs[name].feedback]

    def _num_done(self) -> int:
        return sum(run.metrics.last_step for run in self._runs.values())

    def _seconds_left(self) -> float | None:
        """By the pace of all of them together since the first step that was seen to be done: processes take long to
        start. None before there is one."""
        num_done, now = self._num_done(), time.monotonic()
        if self._pace_from is None and num_done > self._num_done_before:
            self._pace_from = (num_done, now)
        if self._pace_from is None or num_done <= self._pace_from[0]:
            return None
        num_first, since = self._pace_from
        return (sum(self._num_steps.values()) - num_done) * (now - since) / (num_done - num_first)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
