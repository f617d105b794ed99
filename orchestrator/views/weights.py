"""What `raymix weights` prints: the current shares, the history, and the outcome of a request."""

import time
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.controller.operator import (
    ControlRequest,
    describe_change,
    newest_version,
    read_versions,
    submit_request,
    waiting_requests,
)
from orchestrator.views.format import NOTHING, format_share, printable
from orchestrator.views.table import ResultTable, Row, columns_of

_PATIENCE_SECONDS = 20.0
_LOOK_EVERY_SECONDS = 0.2


def weights_view(run_folder: Path) -> RenderableType:
    version = newest_version(run_folder)
    cells = [
        (format_share(share), "pinned" if name in version.pinned else "") for name, share in version.shares.items()
    ]
    decided = f"version {version.version}, from step {version.effective_step} on, by {version.by} ({version.reason})"
    lines = [decided + (f": {version.why}" if version.why else "")]
    lines += ["the algorithm is paused"] if version.paused else []
    if waiting := waiting_requests(run_folder):
        lines.append(f"{len(waiting)} change{'s' if len(waiting) > 1 else ''} waiting for the next step")
    return ResultTable(
        "Domain", list(map(Row, version.shares)), columns_of(("Share", ""), cells), notes=lines
    ).to_rich()


def history_view(run_folder: Path) -> RenderableType:
    versions = read_versions(run_folder)
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("version", "from step"):
        table.add_column(heading, justify="right")
    table.add_column("by", overflow="fold")
    for name in versions[0].shares:
        table.add_column(Text(printable(name)), justify="right", overflow="fold")
    table.add_column("why", overflow="fold")
    for version in versions:
        cells = [
            f"{format_share(share)}{'*' if name in version.pinned else ''}" for name, share in version.shares.items()
        ]
        why = "; ".join([*(["paused"] if version.paused else []), *([version.why] if version.why else [])])
        by = Text(printable(version.by), style="bold" if version.reason == "operator" else "")
        table.add_row(str(version.version), str(version.effective_step), by, *cells, Text(printable(why or NOTHING)))
    is_pinned = any(version.pinned for version in versions)
    return Group(table, Text("* pinned", style="dim")) if is_pinned else table


def ask(run_folder: Path, request: ControlRequest, console: Console) -> None:
    """Submit a request, wait a while for the run to apply it, and print the outcome; ValueError if it was refused."""
    request_id = submit_request(run_folder, request)
    end = time.monotonic() + _PATIENCE_SECONDS
    while request_id in waiting_requests(run_folder) and time.monotonic() < end:
        time.sleep(_LOOK_EVERY_SECONDS)
    if request_id in waiting_requests(run_folder):
        console.print("requested; takes effect at the next step, or when the run resumes", markup=False)
        return
    made = [version for version in read_versions(run_folder) if version.request == request_id]
    if not made:
        raise ValueError(f"refused; {run_folder / 'events.jsonl'} has the reason")
    told = f"version {made[0].version} applies from step {made[0].effective_step} on. {describe_change(made[0])}"
    console.print(printable(told), markup=False, highlight=False, soft_wrap=True)
