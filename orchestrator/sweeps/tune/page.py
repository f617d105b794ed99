"""search.html: the table of the trials, the course of the metric, and how the metric depends on each value."""

from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from orchestrator.sweeps.tune.results import SearchRecord, TrialRecord
from orchestrator.sweeps.tune.table import rank, table, trial_color
from orchestrator.views.format import is_shares, short
from orchestrator.views.report.figures import NEUTRAL, Plot, Section, dots, layout, line
from orchestrator.views.report.html import write_table_page
from orchestrator.views.report.series import label

LOGARITHMIC_FROM = 30  # largest over smallest value


def write_search_page(record: SearchRecord, output: Path) -> None:
    title = f"{record.name}: {len(record.trials)} trials of a {record.type} search"
    write_table_page(output, title, table(record), _sections(record, rank(record)))


def _sections(record: SearchRecord, trials: list[TrialRecord]) -> list[Section]:
    courses = [trial for trial in trials if trial.course]
    if not courses:
        return []
    note = "A line for each trial; the best one is drawn bold"
    note += ", the dotted line is the base model." if record.base_score is not None else "."
    sections = [Section("Course of the metric", note, [Plot("", _courses(record, courses))], is_wide=True)]
    if values := _values(trials):
        plots = [Plot(key, _scatter(record, key, points)) for key, points in values.items()]
        text = "The metric at the last evaluation of each trial over its value; open points ended early."
        sections.append(Section("What the values do", text, plots))
    return sections


def _courses(record: SearchRecord, trials: list[TrialRecord]) -> go.Figure:
    figure = go.Figure(layout=layout(320, yaxis={"hoverformat": ".3f"}) | {"hovermode": "closest"})
    for trial in reversed(trials):  # the best one last, on top
        steps, scores = [each.step for each in trial.course], [each.score for each in trial.course]
        is_best = trial.name == record.best
        more: dict[str, Any] = {"line": {"color": trial_color(record, trial), "width": 3 if is_best else 1.2}}
        figure.add_trace(line(steps, scores, trial.name, trial_color(record, trial), **more))
    if record.base_score is not None:
        figure.add_hline(y=record.base_score, line={"color": NEUTRAL, "dash": "dot", "width": 1.2})
    return figure


Points = list[tuple[TrialRecord, float | str]]


def _values(trials: list[TrialRecord]) -> dict[str, Points]:
    """Plottable value -> the trials and what they have of it; of a mix each domain's share is one."""
    values: dict[str, Points] = {}
    for trial in trials:
        if trial.score is None:
            continue
        for key, value in trial.changes.items():
            if is_shares(value):
                for name, share in value.items():
                    values.setdefault(f"{short(key)}: {name}", []).append((trial, share))
            elif not isinstance(value, dict):
                values.setdefault(key, []).append((trial, value if isinstance(value, int | float) else str(value)))
    return values


def _scatter(record: SearchRecord, key: str, points: Points) -> go.Figure:
    x_axis: dict[str, Any] = {"rangemode": "normal", "hoverformat": ".4~g", "tickformat": ".3~g"}
    numbers = [value for _, value in points if isinstance(value, float)]
    if ": " in key:
        x_axis |= {"tickformat": ".0%", "hoverformat": ".1%"}
    elif len(numbers) == len(points) and min(numbers) > 0 and max(numbers) / min(numbers) > LOGARITHMIC_FROM:
        x_axis |= {"type": "log", "dtick": 1, "tickformat": "~e"}
    figure = go.Figure(layout=layout(220, xaxis=x_axis, yaxis={"hoverformat": ".3f"}) | {"hovermode": "closest"})
    for trial, value in points:
        color = trial_color(record, trial)
        symbol = "circle" if trial.state == "finished" else "circle-open"
        x: list[Any] = [label(value) if isinstance(value, str) else value]
        size = 12 if trial.name == record.best else 7
        figure.add_trace(dots(x, [trial.score], trial.name, color, size=size, symbol=symbol))
    return figure
