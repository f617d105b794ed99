"""A run's table, a row for each domain, and its summary in the terminal: the verdict and where the results are."""

from dataclasses import replace
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from orchestrator.runs.folder import RunFolder, read_run
from orchestrator.runs.loss_errors import LossErrors, RunErrors, run_errors
from orchestrator.runs.records import DomainSummary, RunSummary
from orchestrator.views.format import (
    ERROR_NOTE,
    NOTHING,
    format_epochs,
    format_error,
    format_loss,
    format_share,
    printable,
)
from orchestrator.views.palette import color_by_name
from orchestrator.views.table import Cell, ResultTable, Row, change_cell, columns_of
from orchestrator.views.verdict import HARMFUL, verdict_lines

_HEADINGS = ("Share", "Epochs", "Loss, base", "best", "end", "Change")
_LOSSES = "Losses in nats per loss token on held-out rows, assistant tokens only; change is end minus base. "
_ERRORS = f"{ERROR_NOTE}; a change is paired over the examples, and coloured if it is more than two standard errors."
_STYLES = {"improved": "green", "mixed": "yellow", "unchanged": "yellow"} | dict.fromkeys(HARMFUL, "bold red")


def summary_view(run_folder: Path) -> RenderableType:
    run = read_run(run_folder)
    if run.summary is None:
        return Text(f"{run.path}: not finished, no summary.json")
    places = [(label, run.path / part) for label, part in (("model", "model"), ("report", "report.html"))]
    lines = [Text(f"{label:<8}{printable(path)}", overflow="fold") for label, path in places if path.exists()]
    verdict = [Text(printable(line), overflow="fold") for line in verdict_lines(run, run.summary)]
    if verdict and run.summary.verdict is not None:
        verdict[0].stylize(_STYLES.get(run.summary.verdict, ""))
    return Group(domain_table(run, run.summary, run_errors(run)).to_rich(), *verdict, *lines)


def domain_table(run: RunFolder, result: RunSummary, errors: RunErrors) -> ResultTable:
    """A row for each domain of a run: shares, epochs, and losses with their standard errors."""
    colors = color_by_name(run.domains)
    columns = columns_of(_HEADINGS, (_cells(each, errors.of(name)) for name, each in result.domains.items()))
    return ResultTable(
        "Domain",
        [Row(name, color=colors.get(name, "gray"), part=each.share_final) for name, each in result.domains.items()],
        [replace(column, brief=column.heading.removeprefix("Loss, ")) for column in columns],
        notes=[_LOSSES + _best(result) + (_ERRORS if errors.are_known else "No standard errors were recorded.")],
    )


def _best(result: RunSummary) -> str:
    if result.best is None:
        return ""
    return f"Best is {f'the evaluation at step {result.best.step:,}' if result.best.step else 'the base'}. "


def _cells(domain: DomainSummary, errors: LossErrors) -> list[Cell | str]:
    start, end = domain.loss_nats_start, domain.loss_nats_end
    shares = [format_share(share) for share in (domain.share_initial, domain.share_final)]
    is_measured_only = domain.share_initial is None and domain.share_final is None
    return [
        NOTHING if is_measured_only else Cell(" \u2192 ".join(shares), brief=" -> ".join(shares)),
        format_epochs(domain.epochs),
        Cell(format_loss(start), format_error(errors.start), brief=format_loss(start)),
        format_loss(domain.loss_nats_best),
        Cell(format_loss(end), format_error(errors.end)),
        change_cell(end, start, errors.change_error),
    ]
