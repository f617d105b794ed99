"""What a search found, as a table and as search.html: the courses, and how the metric depends on each value."""

import json
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from orchestrator.sweeps.tune.trials import SearchRecord, TrialRecord
from orchestrator.views.format import COLORS, format_loss, format_value, is_shares, printable, short
from orchestrator.views.report.figures import NEUTRAL, Plot, Section, dots, label, layout, line
from orchestrator.views.report.html import write_table_page
from orchestrator.views.table import Cell, Column, Remark, ResultTable, Row

MAX_ROWS = 20  # in the terminal
LOGARITHMIC_FROM = 30  # largest over smallest value
Points = list[tuple[TrialRecord, float | str]]

_CAVEATS = (
    "One seed: differences smaller than the spread across seeds are not meaningful. `raymix compare` repeats a "
    "few over seeds.",
    "The best of many trials looks better than it is: it was chosen by the same held-out rows that score it.",
)


def table(record: SearchRecord) -> ResultTable:
    """The metric, the values that were tried and, on a page, every domain's loss."""
    trials = rank(record)
    keys = list(dict.fromkeys(key for trial in record.trials for key in trial.changes))
    domains = list(dict.fromkeys(name for trial in trials for name in trial.losses_nats))
    losses = {name: [trial.losses_nats.get(name) for trial in trials] for name in domains}
    return ResultTable(
        "Run",
        [Row(trial.name, color=trial_color(record, trial), is_best=trial.name == record.best) for trial in trials],
        [
            Column(record.metric, [Cell(_score(trial), value=trial.score) for trial in trials]),
            Column("steps", [Cell(str(trial.course[-1].step if trial.course else 0)) for trial in trials]),
            *(Column(key, [_value(trial.changes.get(key)) for trial in trials], short(key)) for key in keys),
            *(
                Column(name, [Cell(format_loss(loss), value=loss) for loss in of_trials], is_on_page_only=True)
                for name, of_trials in losses.items()
            ),
        ],
        explanation=f"{record.metric.capitalize()} in nats per token on held-out rows.",
        notes=record.notes,
        remarks=[Remark(f"failed: {trial.name}", [trial.reason]) for trial in trials if trial.state == "failed"],
        caveats=_CAVEATS,
    )


def rank(record: SearchRecord) -> list[TrialRecord]:
    """Finished trials, lowest metric first, then those that ended early, then the rest."""
    order = {"finished": 0, "ended early": 1, "unfinished": 2, "failed": 3}
    return sorted(record.trials, key=lambda trial: (order[trial.state], trial.score is None, trial.score or 0.0))


def trial_color(record: SearchRecord, trial: TrialRecord) -> str:
    """The best trial stands out; one colour for all others that finished, grey for the rest."""
    if trial.name == record.best:
        return COLORS[1]
    return COLORS[0] if trial.state == "finished" else NEUTRAL


def _score(trial: TrialRecord) -> str:
    """The metric, or what became of the trial instead."""
    if trial.state == "finished":
        return format_loss(trial.score)
    return trial.state if trial.score is None else f"{format_loss(trial.score)} ({trial.state})"


def _value(value: Any) -> Cell:
    """A value of a key; in the terminal a mix takes a line for each domain."""
    if not is_shares(value):
        return Cell(format_value(value), value=value if isinstance(value, int | float | str) else None)
    lines = [printable(format_value({name: share})) for name, share in value.items()]
    return Cell(format_value(value), brief="\n".join(lines), value=json.dumps(value))


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
