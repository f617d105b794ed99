"""What compare, tune and coarse-search leave: a record and a table beside the page, and the table in the terminal."""

from pathlib import Path

from pydantic import BaseModel
from rich.console import Console

from orchestrator.views.table import ResultTable
from workers.durable import write_durably


def publish(record: BaseModel, table: ResultTable, page: Path, console: Console, max_rows: int | None = None) -> None:
    """Write the record as JSON and the table as CSV beside the page, print the table and say where the page is.

    Args:
        record: what was found.
        table: the same for the user.
        page: the HTML page; it may be written afterwards.
        console: prints the table.
        max_rows: of the terminal.
    """
    write_durably(page.with_suffix(".json"), record.model_dump_json(indent=1).encode())
    write_durably(page.with_suffix(".csv"), table.to_csv().encode())
    console.print(table.to_rich(max_rows))
    console.print(f"page: {page}", highlight=False, soft_wrap=True)
