"""What a search found, for a terminal."""

from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.sweeps.tune.results import SearchRecord, TrialRecord
from orchestrator.views.terminal import format_loss, printable
from orchestrator.views.values import format_value, is_shares, short

MAX_ROWS = 20


def search_view(record: SearchRecord) -> RenderableType:
    """The best trials, a row for each, best first; then the notes."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True, header_style="dim")
    table.add_column("trial", no_wrap=True)
    keys = changed_keys(record)
    ranked = rank(record)
    for heading in (record.metric, "steps"):
        table.add_column(Text(printable(heading)), justify="right", overflow="fold")
    for key in keys:
        is_mix = any(is_shares(trial.changes.get(key)) for trial in ranked)
        table.add_column(Text(printable(short(key))), justify="right", overflow="fold", no_wrap=is_mix)
    for trial in ranked[:MAX_ROWS]:
        style = "bold green" if trial.name == record.best else ""
        cells = [trial.name, trial_score(trial), str(trial.course[-1].step if trial.course else 0)]
        texts = [printable(cell) for cell in cells] + [_value_text(trial.changes.get(key)) for key in keys]
        table.add_row(*(Text(text, style=style) for text in texts))
    more = [f"and {len(ranked) - MAX_ROWS} more"] if len(ranked) > MAX_ROWS else []
    return Group(table, *(Text(printable(line), style="dim") for line in (*more, *record.notes)))


def _value_text(value: Any) -> str:
    """A value of a key; a mix takes a line for each domain."""
    parts = [{name: share} for name, share in value.items()] if is_shares(value) else [value]
    return "\n".join(printable(format_value(part)) for part in parts)


def rank(record: SearchRecord) -> list[TrialRecord]:
    """Finished trials, lowest metric first, then those that ended early, then the rest."""
    order = {"finished": 0, "ended early": 1, "unfinished": 2, "failed": 3}
    return sorted(record.trials, key=lambda trial: (order[trial.state], trial.score is None, trial.score or 0.0))


def changed_keys(record: SearchRecord) -> list[str]:
    """The keys that trials differ in."""
    return list(dict.fromkeys(key for trial in record.trials for key in trial.changes))


def trial_score(trial: TrialRecord) -> str:
    """The metric, or what became of the trial instead."""
    if trial.state == "finished":
        return format_loss(trial.score)
    return trial.state if trial.score is None else f"{format_loss(trial.score)} ({trial.state})"
