"""Findings in the terminal: a line each, coloured by severity."""

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from orchestrator.runs.data_record import Finding, Severity
from orchestrator.views.format import printable

_STYLES: dict[Severity, str] = {"error": "red", "warning": "yellow", "note": ""}


def print_findings(console: Console, findings: Iterable[Finding]) -> None:
    """The findings in order; outside a terminal, each stays on one line."""
    for finding in findings:
        text = Text(printable(finding.line), style=_STYLES[finding.severity])
        console.print(text, soft_wrap=not console.is_terminal)
