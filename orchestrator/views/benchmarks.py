"""Benchmarks in the terminal: how far a model is, and the scores of both."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from orchestrator.runs.benchmark_record import MetricScores, Score, TaskScores, asked_for
from orchestrator.views.terminal import NOTHING, printable

_STYLES = {"better": "green", "worse": "red", "same": "dim"}


class ScoringView:
    """How far one model is: a bar in a terminal, a line elsewhere."""

    def __init__(self, name: str, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30, complete_style="cyan", finished_style="green"),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._name = name
        self._num_requests = 0
        self._bar = self._progress.add_task(f"{name}: loading", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if not self._console.is_terminal and error is None:
            self._console.print(Text(f"{self._name}: {self._num_requests:,} answers"), soft_wrap=True)

    def begin(self, num_requests: int) -> None:
        """So many more answers are to come."""
        self._num_requests += num_requests
        self._progress.update(self._bar, description=self._name, total=self._num_requests)

    def advance(self) -> None:
        """One has come."""
        self._progress.advance(self._bar)


def format_score(score: Score) -> str:
    """0.412 +- its standard error."""
    if score.value is None:
        return NOTHING
    return _number(score.value) + ("" if score.stderr is None else f" \u00b1{_number(score.stderr)}")


def format_change(metric: MetricScores) -> str:
    """Result minus base, with its sign."""
    return NOTHING if metric.change is None else f"{metric.change:+.3f}"


def scores_table(scores: Sequence[TaskScores]) -> Table:
    """A row for each metric of each task; green and red where the change is more than two standard errors."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, header_style="dim")
    for heading in ("task", "metric"):
        table.add_column(heading, overflow="fold")
    for heading in ("samples", "base", "result", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    for score in asked_for(scores):
        for name, metric in score.metrics.items():
            table.add_row(
                Text(printable(score.label)),
                Text(printable(name)),
                NOTHING if score.num_samples is None else f"{score.num_samples:,}",
                format_score(metric.base),
                format_score(metric.result),
                Text(format_change(metric), style=_STYLES[metric.verdict]),
            )
    return table


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"
