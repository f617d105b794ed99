"""Benchmarks on a page: a run's base model against its result, or the results of several runs."""

from collections.abc import Iterator, Mapping, Sequence

import plotly.graph_objects as go

from orchestrator.runs.benchmark_record import MetricScores, Score, asked_for
from orchestrator.runs.folder import RunFolder
from orchestrator.views.benchmarks import format_change, format_score
from orchestrator.views.report.comparison import RUN_COLORS, run_colors
from orchestrator.views.report.figures import NEUTRAL, Plot, Section, layout
from orchestrator.views.report.series import label
from orchestrator.views.report.tables import Rows

_SHARED = "Scores from 0 to 1, higher is better"
_APART = 0.36  # of the distance between two lines of a plot, for the points of one
_ROW_PIXELS, _AXIS_PIXELS = 42, 44

_Scores = dict[tuple[str, str], Score]  # by task and metric
_NOTE = "Scores by lm-evaluation-harness; \u00b1 and bars are one standard error."
_CHANGE_NOTE = (
    "A change is coloured where it is more than two standard errors: blue is better than the base model, red is worse."
)


def benchmark_sections(runs: Sequence[RunFolder]) -> list[Section]:
    """What tasks.json holds, as a section; none where nothing was evaluated."""
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
    return [Section("Benchmarks", f"{_NOTE} {_CHANGE_NOTE}", plots, is_wide=True, table=_rows(run), legend=colors)]


def _metrics(run: RunFolder) -> Iterator[tuple[tuple[str, str], MetricScores]]:
    for score in asked_for(run.tasks):
        for name, metric in score.metrics.items():
            yield (score.label, name), metric


def _plots(runs: Sequence[RunFolder], shown: Mapping[str, _Scores], colors: Mapping[str, str]) -> list[Plot]:
    """One plot of all that shares the scale of 0 to 1, and one for each other metric."""
    places: dict[str, dict[tuple[str, str], None]] = {}
    for run in runs:
        for key, metric in _metrics(run):
            values = [score.value for score in (metric.base, metric.result) if score.value is not None]
            is_shared = metric.is_higher_better and all(0 <= value <= 1 for value in values)
            places.setdefault(_SHARED if is_shared else key[1], {})[key] = None
    return [Plot(title, _figure(list(keys), shown, colors)) for title, keys in places.items()]


def _figure(keys: Sequence[tuple[str, str]], shown: Mapping[str, _Scores], colors: Mapping[str, str]) -> go.Figure:
    """A line for each task and metric, and on it a point with its error for each model, the first on top."""
    names = [f"{label(task)}<br>{label(metric)}" for task, metric in keys]
    figure = go.Figure(layout=layout(_AXIS_PIXELS + _ROW_PIXELS * len(keys)))
    for index, (model, scores) in enumerate(shown.items()):
        shift = _APART * (index / max(len(shown) - 1, 1) - 0.5)
        found = [scores.get(key, Score()) for key in keys]
        errors = {"type": "data", "array": [score.stderr for score in found], "thickness": 1.4, "width": 4}
        figure.add_trace(
            go.Scatter(
                x=[score.value for score in found],
                y=[place + shift for place in range(len(keys))],
                error_x=errors | {"color": colors[model]},
                mode="markers",
                marker={"size": 9, "color": colors[model]},
                name=label(model),
                customdata=[[name] for name in names],
                hovertemplate="%{customdata[0]}: %{x:.3f}",
            )
        )
    figure.update_yaxes(tickvals=list(range(len(keys))), ticktext=names, ticks="", range=[len(keys) - 0.5, -0.5])
    figure.update_xaxes(rangemode="normal", tickformat=None, hoverformat=".3f")
    figure.update_layout(hovermode="closest")
    return figure


def _rows(run: RunFolder) -> Rows:
    rows: list[list[str]] = []
    kinds: list[str] = []
    for score in asked_for(run.tasks):
        for name, metric in score.metrics.items():
            counts = ["-" if count is None else f"{count:,}" for count in (score.num_samples, score.num_fewshot)]
            scores = [format_score(metric.base), format_score(metric.result), format_change(metric)]
            rows.append([score.label, name, *counts, *scores])
            kinds.append(metric.verdict)
    return Rows(["Task", "Samples", "Few-shot", "Base", "Result", "Change"], rows, kinds)
