"""Benchmarks in the terminal: the progress of a model, and the scores of both models."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, TimeRemainingColumn
from rich.text import Text

from orchestrator.runs.benchmark_record import TaskScores, asked_for
from orchestrator.views.format import format_count, format_score, format_score_change
from orchestrator.views.live import LiveView, progress_bars
from orchestrator.views.table import Cell, Column, ResultTable, Row


class ScoringView(LiveView):
    """The progress of one model: a bar in a terminal, a line elsewhere."""

    def __init__(self, name: str, console: Console) -> None:
        self._console = console
        remaining = TimeRemainingColumn(elapsed_when_finished=True)
        self._progress = progress_bars(console, MofNCompleteColumn(), remaining)
        super().__init__(self._progress)
        self._name = name
        self._num_requests = 0
        self._bar = self._progress.add_task(f"{name}: loading", total=None)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if not self._console.is_terminal and error[0] is None:
            self._console.print(Text(f"{self._name}: {self._num_requests:,} answers"), soft_wrap=True)

    def begin(self, num_requests: int) -> None:
        self._num_requests += num_requests
        self._progress.update(self._bar, description=self._name, total=self._num_requests)

    def advance(self) -> None:
        self._progress.advance(self._bar)


def scores_table(scores: Sequence[TaskScores]) -> ResultTable:
    """A row for each metric of each task; changes of more than two standard errors are coloured."""
    shown = [(score, name, metric) for score in asked_for(scores) for name, metric in score.metrics.items()]
    changes = [Cell(format_score_change(metric), style=metric.verdict) for _, _, metric in shown]
    return ResultTable(
        "Task",
        [Row(score.label, name) for score, name, _ in shown],
        [
            Column("Samples", [Cell(format_count(score.num_samples)) for score, _, _ in shown]),
            Column("Few-shot", [Cell(format_count(score.num_fewshot)) for score, _, _ in shown], is_on_page_only=True),
            Column("Base", [Cell(format_score(metric.base)) for _, _, metric in shown]),
            Column("Result", [Cell(format_score(metric.result)) for _, _, metric in shown]),
            Column("Change", changes),
        ],
        detail_heading="Metric",
    )
