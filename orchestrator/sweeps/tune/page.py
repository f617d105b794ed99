"""search.html: the table of the trials, the course of the metric, and what the metric owes to each value."""

from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from orchestrator.sweeps.tune.results import SearchRecord, TrialRecord
from orchestrator.sweeps.tune.view import changed_keys, rank, trial_score
from orchestrator.views.palette import COLORS
from orchestrator.views.report.comparison import Cell
from orchestrator.views.report.comparison import Comparison as Columns
from orchestrator.views.report.figures import NEUTRAL, Plot, Section, layout, line
from orchestrator.views.report.html import render_page, write_page
from orchestrator.views.report.series import label
from orchestrator.views.terminal import format_loss
from orchestrator.views.values import format_value, is_shares, short

_CAVEATS = (
    "One seed: trials that differ by less than seeds do are equally good. `raymix compare` repeats a few over seeds.",
    "The best of many trials looks better than it is: it was chosen by the same held-out rows that judge it.",
)

LOGARITHMIC_FROM = 30  # largest over smallest value


def write_search_page(record: SearchRecord, output: Path) -> None:
    """Write the page."""
    trials = rank(record)
    domains = list(dict.fromkeys(name for trial in trials for name in trial.losses_nats))
    columns = {
        record.metric: [Cell(trial_score(trial), is_best=trial.name == record.best) for trial in trials],
        "steps": [Cell(str(trial.course[-1].step if trial.course else 0)) for trial in trials],
    }
    columns |= {key: [Cell(format_value(trial.changes.get(key))) for trial in trials] for key in changed_keys(record)}
    columns |= {name: [Cell(format_loss(trial.losses_nats.get(name))) for trial in trials] for name in domains}
    failed = [f"Failed: {trial.name}: {trial.reason}" for trial in trials if trial.state == "failed"]
    names = [trial.name for trial in trials]
    page = render_page(
        "comparison.html",
        _sections(record, trials),
        [*_CAVEATS, *failed],
        note=" ".join([f"{record.metric.capitalize()} in nats per token on held-out rows.", *record.notes]),
        title=f"{record.name}: {len(trials)} trials of a {record.type} search",
        comparison=Columns(names, columns),
        run_colors={trial.name: _color(record, trial) for trial in trials},
        domain_colors={},
    )
    write_page(output, page)


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
        more: dict[str, Any] = {"line": {"color": _color(record, trial), "width": 3 if is_best else 1.2}}
        figure.add_trace(line(steps, scores, trial.name, _color(record, trial), **more))
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
        color = _color(record, trial)
        symbol = "circle" if trial.state == "finished" else "circle-open"
        more: dict[str, Any] = {
            "mode": "markers",
            "marker": {"size": 12 if trial.name == record.best else 7, "color": color, "symbol": symbol},
        }
        x: list[Any] = [label(value) if isinstance(value, str) else value]
        figure.add_trace(line(x, [trial.score], trial.name, color, **more))
    return figure


def _color(record: SearchRecord, trial: TrialRecord) -> str:
    """The best trial stands out; one colour for all others that finished, grey for the rest."""
    if trial.name == record.best:
        return COLORS[1]
    return COLORS[0] if trial.state == "finished" else NEUTRAL
