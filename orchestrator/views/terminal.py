"""What live views share, and a run in the terminal: its progress, read from its files only, and findings.

In a terminal the views are live; elsewhere (a file, a pipe, a job's log) they write plain lines, one per evaluation.
Domain names and messages come from the user's files, so everything is printed as text, never as markup, and terminal
control characters are escaped.
"""

import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from orchestrator.runs.folder import RunFolder
from orchestrator.runs.records import Event, Finding, Severity
from orchestrator.views.format import (
    color_by_name,
    format_count,
    format_duration,
    format_epochs,
    format_error,
    format_loss,
    format_share,
    format_workers,
    printable,
)
from orchestrator.views.table import change_cell
from workers.contracts import DomainFeedback

POLL_SECONDS = 0.25
CLOCK_TRUST_SECONDS = 10.0  # after this, the wall clock gives a better pace than the steps' own times
BAR_WIDTH = 60
_STYLES: dict[Severity, str] = {"error": "red", "warning": "yellow", "note": ""}


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


class RunView(LiveView):
    """A live view of one run: `with RunView(folder, domains, total_steps, console): train()`.

    A thread reads the run folder four times a second, without any effect on training.
    """

    def __init__(self, run_folder: Path, domains: Sequence[str], total_steps: int, console: Console) -> None:
        self.run = RunFolder(run_folder)
        self.domains = list(domains)
        self.total_steps = total_steps
        self.console = console
        self._live = None
        if console.is_terminal:  # rich would otherwise capture other output and show it above the view
            self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        super().__init__(self._live, POLL_SECONDS)
        self._steps_before = 0  # of earlier attempts: the time since then is not training
        self._pace_from: tuple[int, float] | None = None
        self._printed_up_to = -1
        self._num_events_told = 0

    def _begin(self) -> None:
        self.run.refresh()
        self._num_events_told = len(self.run.events)  # those of earlier attempts were printed then
        self._steps_before = self.run.metrics.last_step
        if self._live is None:
            self._print_line(f"{self._heading().plain}: {self.total_steps:,} steps")
        self._show()

    def _look(self) -> None:
        if self.run.refresh():
            self._show()

    def _show(self) -> None:
        step = self.run.metrics.last_step
        is_new = step != self._steps_before
        if is_new and (self._pace_from is None or step < self._pace_from[0]):  # a resumed run goes back
            self._pace_from = (step, time.monotonic())
        if self._live is not None:
            self._live.update(self.render(), refresh=True)
            return
        for event in self.run.events[self._num_events_told :]:
            self._print_line(_describe_event(event))
        self._num_events_told = len(self.run.events)
        for feedback in self.run.feedback:
            if feedback.step > self._printed_up_to:
                self._print_line(self._evaluation_line(feedback))
                self._printed_up_to = feedback.step

    def _print_line(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)

    def render(self) -> RenderableType:
        return Group(self._heading(), self._progress(), self._domain_table(), self._event_line())

    def _heading(self) -> Text:
        run = self.run
        num_workers = run.setting("cluster", "num_workers")
        parts = [
            (run.setting("mixing", "type"), "{}"),
            (format_workers(num_workers) if num_workers else None, "{} workers"),
            (run.setting("training", "deepspeed", "zero_stage"), "ZeRO-{}"),
        ]
        facts = "".join(f"  {template.format(printable(value))}" for value, template in parts if value is not None)
        return Text.assemble((printable(run.name), "bold"), (facts.replace(" 1 workers", " 1 worker"), "dim"))

    def _progress(self) -> Table:
        step = self.run.metrics.last_step
        figures = f"step {step:,}/{self.total_steps:,}   ETA {format_duration(self._eta_seconds())}"
        figures += f"   {_format_speed(self.run.metrics.recent_tokens_per_second())}"
        bar = ProgressBar(total=self.total_steps, completed=step, width=BAR_WIDTH, complete_style="cyan")
        lines = Table.grid()  # a bar alone ends without a line break
        lines.add_row(bar)
        lines.add_row(figures)
        return lines

    def _domain_table(self) -> Table:
        run = self.run
        step = run.metrics.last_step
        weights = run.weights_at(self._next_step(step))
        feedback = run.feedback
        latest = feedback[-1] if feedback else None
        base = feedback[0] if feedback and feedback[0].step == 0 else None
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, header_style="dim")
        table.add_column("domain", overflow="ellipsis", no_wrap=True, min_width=8)
        table.add_column("", max_width=10)
        for heading in ("share", "epochs", "loss", "vs base"):
            table.add_column(heading, justify="right", no_wrap=True)
        for domain, color in color_by_name(self.domains).items():
            share = weights.shares.get(domain) if weights else None  # a domain that is only measured has none
            epochs = run.metrics.last(f"epochs/{domain}")
            loss = latest.loss_nats(domain) if latest else math.nan
            change = latest.change_from_first.get(domain) if latest else None
            table.add_row(
                Text(printable(domain)),
                ProgressBar(total=1.0, completed=share or 0.0, width=10, complete_style=color, finished_style=color),
                format_share(share),
                format_epochs(epochs),
                format_loss(loss) + format_error(latest.standard_error_nats.get(domain) if latest else None),
                change_cell(
                    loss, base.loss_nats(domain) if base else None, change.standard_error if change else None
                ).to_rich(),
            )
        return table

    def _event_line(self) -> Text:
        run = self.run
        if run.events:
            return Text(_describe_event(run.events[-1]), style="yellow", no_wrap=True, overflow="ellipsis")
        weights = run.weights
        if not weights:
            return Text("waiting for the first step", style="dim")
        newest = weights[-1]
        text = f"weights version {newest.version} by {printable(newest.by)} from step {newest.effective_step:,}"
        return Text(text, style="dim", no_wrap=True, overflow="ellipsis")

    def _evaluation_line(self, feedback: DomainFeedback) -> str:
        weights = self.run.weights_at(self._next_step(feedback.step))
        parts = [
            f"step {feedback.step:,}/{self.total_steps:,}",
            _format_speed(self.run.metrics.recent_tokens_per_second(feedback.step)),
            f"ETA {format_duration(self._eta_seconds(feedback.step))}",
        ]
        for domain in self.domains:
            share = weights.shares.get(domain) if weights else None
            parts.append(f"{printable(domain)} {format_loss(feedback.loss_nats(domain))} ({format_share(share)})")
        return "  ".join(parts)

    def _next_step(self, step: int) -> int:
        """The step after `step`; the last step for itself, because the version after it is never used."""
        return min(step + 1, self.total_steps)

    def _eta_seconds(self, step: int | None = None) -> float:
        """Estimated by the wall clock, including evaluations and checkpoints, once enough time has passed."""
        last_step = self.run.metrics.last_step
        seconds_per_step = self.run.metrics.recent_seconds_per_step(step)
        if self._pace_from is not None:
            first_step, since = self._pace_from
            elapsed = time.monotonic() - since
            if elapsed > CLOCK_TRUST_SECONDS and last_step > first_step:
                seconds_per_step = elapsed / (last_step - first_step)
        return (self.total_steps - (last_step if step is None else step)) * seconds_per_step


def _describe_event(event: Event) -> str:
    place = "" if event.step is None else f"step {event.step:,}  "
    return f"{place}{printable(event.kind)}  {printable(event.message)}"


def _format_speed(tokens_per_second: float) -> str:
    return f"{format_count(tokens_per_second)} tokens/s"


def print_findings(console: Console, findings: Iterable[Finding]) -> None:
    """The findings in order; outside a terminal, each stays on one line."""
    for finding in findings:
        text = Text(printable(finding.line), style=_STYLES[finding.severity])
        console.print(text, soft_wrap=not console.is_terminal)
