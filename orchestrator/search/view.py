"""What a search found, for a terminal."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.search.results import SearchRecord, TrialRecord
from orchestrator.search.values import format_value, short
from orchestrator.terminal import format_loss, printable

MAX_ROWS = 20


def search_view(record: SearchRecord) -> RenderableType:
    """The best trials, a row for each, best first; then the notes."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("trial", overflow="fold")
    keys = changed_keys(record)
    for heading in (record.metric, "steps", *(short(key) for key in keys)):
        table.add_column(Text(printable(heading)), justify="right", overflow="fold")
    ranked = rank(record)
    for trial in ranked[:MAX_ROWS]:
        style = "bold green" if trial.name == record.best else ""
        cells = [trial_score(trial), str(trial.course[-1].step if trial.course else 0)]
        cells += [format_value(trial.changes.get(key)) for key in keys]
        table.add_row(Text(printable(trial.name), style=style), *(Text(printable(c), style=style) for c in cells))
    more = [f"and {len(ranked) - MAX_ROWS} more"] if len(ranked) > MAX_ROWS else []
    return Group(table, *(Text(printable(line), style="dim") for line in (*more, *record.notes)))


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
