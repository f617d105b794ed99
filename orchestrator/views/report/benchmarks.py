"""Benchmarks of a run's base model and its result, as a table and as plots, or the results of several runs."""

from collections.abc import Iterator, Mapping, Sequence

import plotly.graph_objects as go

from orchestrator.runs.benchmark_record import MetricScores, Score, TaskScores, asked_for
from orchestrator.runs.folder import RunFolder
from orchestrator.views.format import RUN_COLORS, format_count, format_score, format_score_change
from orchestrator.views.report.comparison import run_colors
from orchestrator.views.report.figures import NEUTRAL, Plot, Point, Section, label, points_figure
from orchestrator.views.table import Cell, Column, ResultTable, Row

_SHARED = "Scores from 0 to 1, higher is better"

_Scores = dict[tuple[str, str], Score]  # by task and metric
_NOTE = "Scores from lm-evaluation-harness; \u00b1 and bars are one standard error."
_CHANGE_NOTE = (
    "A change of more than two standard errors is coloured: blue is better than the base model, red is worse."
)


def benchmark_sections(runs: Sequence[RunFolder]) -> list[Section]:
    if not any(run.tasks for run in runs):
        return []
    if len(runs) > 1:
        colors = run_colors(runs)
        results = [{key: metric.result for key, metric in _metrics(run)} for run in runs]
        shown = dict(zip(colors, results, strict=True))
        return [Section("Benchmarks", _NOTE, _plots(runs, shown, colors), is_wide=True, legend=colors)]
    (run,) = runs
    colors = {"base": NEUTRAL, "result": RUN_COLORS[1]}
    shown = {
        "base": {key: metric.base for key, metric in _metrics(run)},
        "result": {key: metric.result for key, metric in _metrics(run)},
    }
    plots = _plots(runs, shown, colors)
    note, table = f"{_NOTE} {_CHANGE_NOTE}", scores_table(run.tasks)
    return [Section("Benchmarks", note, plots, is_wide=True, table=table, legend=colors)]


def _metrics(run: RunFolder) -> Iterator[tuple[tuple[str, str], MetricScores]]:
    for score in asked_for(run.tasks):
        for name, metric in score.metrics.items():
            yield (score.label, name), metric


def _plots(runs: Sequence[RunFolder], shown: Mapping[str, _Scores], colors: Mapping[str, str]) -> list[Plot]:
    places: dict[str, dict[tuple[str, str], None]] = {}
    for run in runs:
        for key, metric in _metrics(run):
            values = [score.value for score in (metric.base, metric.result) if score.value is not None]
            is_shared = metric.is_higher_better and all(0 <= value <= 1 for value in values)
            places.setdefault(_SHARED if is_shared else key[1], {})[key] = None
    return [Plot(title, _figure(list(keys), shown, colors)) for title, keys in places.items()]


def _figure(keys: Sequence[tuple[str, str]], shown: Mapping[str, _Scores], colors: Mapping[str, str]) -> go.Figure:
    names = [f"{label(task)}<br>{label(metric)}" for task, metric in keys]
    points = {
        model: {
            place: Point(score.value, score.stderr, [names[place]])
            for place, score in enumerate(scores.get(key, Score()) for key in keys)
        }
        for model, scores in shown.items()
    }
    figure = points_figure(names, points, colors, "%{customdata[0]}: %{x:.3f}", row_pixels=42)
    figure.update_xaxes(rangemode="normal", tickformat=None, hoverformat=".3f")
    return figure


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
