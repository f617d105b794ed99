"""The table of a search: a row for each trial, best first."""

import json
from typing import Any

from orchestrator.sweeps.tune.results import SearchRecord, TrialRecord
from orchestrator.views.format import format_loss, format_value, is_shares, printable, short
from orchestrator.views.palette import COLORS
from orchestrator.views.report.figures import NEUTRAL
from orchestrator.views.table import Cell, Column, Remark, ResultTable, Row

MAX_ROWS = 20  # in the terminal

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
    mix = json.dumps(value)
    lines = [printable(format_value({name: share})) for name, share in value.items()]
    return Cell(format_value(value), brief="\n".join(lines), value=mix)
