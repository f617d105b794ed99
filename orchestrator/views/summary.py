"""The end of a run in the terminal: a row for each domain, what came of it all, and where the results lie."""

from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.runs.folder import RunFolder, read_run
from orchestrator.runs.loss_errors import ERROR_NOTE, RunErrors, change_text, error_text, run_errors
from orchestrator.runs.records import DomainSummary, RunSummary
from orchestrator.views.terminal import NOTHING, format_loss, format_share, printable
from orchestrator.views.verdict import HARMFUL, verdict_lines

_STYLES = {"improved": "green", "mixed": "yellow", "unchanged": "yellow"} | dict.fromkeys(HARMFUL, "bold red")


def summary_view(run_folder: Path) -> RenderableType:
    """A finished run as its summary.json tells it."""
    run = read_run(run_folder)
    if run.summary is None:
        return Text(f"{run.path}: not finished, no summary.json")
    places = [(label, run.path / part) for label, part in (("model", "model"), ("report", "report.html"))]
    lines = [Text(f"{label:<8}{printable(path)}", overflow="fold") for label, path in places if path.exists()]
    best = run.summary.best
    of_best = (
        "" if best is None else f"; best is {'the base' if best.step == 0 else f'the evaluation at step {best.step:,}'}"
    )
    note = Text(f"losses in nats per token{of_best}; {ERROR_NOTE}", style="dim")
    return Group(_domain_table(run.summary, run_errors(run)), note, *_verdict(run, run.summary), *lines)


def _domain_table(summary: RunSummary, of_run: RunErrors) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("domain", overflow="fold")
    headings = ("share", "epochs", "base", "best", "end", "change")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for domain, result in summary.domains.items():
        errors = of_run.of(domain)
        table.add_row(
            Text(printable(domain)),
            _shares(result),
            NOTHING if result.epochs is None else f"{result.epochs:.2f}",
            format_loss(result.loss_nats_start),
            format_loss(result.loss_nats_best),
            format_loss(result.loss_nats_end) + error_text(errors.end),
            change_text(result.loss_nats_end, result.loss_nats_start, errors.change_error),
        )
    return table


def _which_is_best(summary: RunSummary) -> str:
    if summary.best is None:
        return ""
    step = summary.best.step
    return f"; best is {'the base' if step == 0 else f'the evaluation at step {step:,}'}"


def _shares(result: DomainSummary) -> str:
    """First and last; one dash for a domain that is only measured."""
    if result.share_initial is None and result.share_final is None:
        return NOTHING
    return f"{format_share(result.share_initial)} -> {format_share(result.share_final)}"


def _verdict(run: RunFolder, summary: RunSummary) -> list[Text]:
    """A line each, the first in colour."""
    lines = [Text(printable(line), overflow="fold") for line in verdict_lines(run, summary)]
    if lines and summary.verdict is not None:
        lines[0].stylize(_STYLES.get(summary.verdict, ""))
    return lines
