"""Results as plain data, a row for each run, rendered for the terminal, for a page, and as CSV.

The results of a sweep are one `ResultTable`, so that terminal, page and file agree.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from typing import Literal

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from orchestrator.runs.loss_errors import verdict
from orchestrator.views.format import NOTHING, format_error, format_loss, format_share, printable

Style = Literal["", "best", "better", "worse", "same"]
_RICH_STYLES = {"": "", "best": "bold green", "better": "green", "worse": "red", "same": "dim"}


@dataclass(frozen=True)
class Cell:
    """One entry: what is shown, and the numbers behind it for further computation."""

    text: str
    aside: str = ""
    """Follows the text, smaller on a page: an error, or the difference from another run."""
    style: Style = ""
    brief: str | None = None
    """What the terminal shows instead of both; may have several lines."""
    value: float | str | None = None
    half_width: float | None = None
    """Half the width of the value's interval."""
    held_out_error: float | None = None
    """Its standard error over the held-out examples."""

    @property
    def whole(self) -> str:
        return self.text + self.aside

    def to_rich(self, row_style: str = "") -> Text:
        lines = [self.whole] if self.brief is None else self.brief.split("\n")
        return Text("\n".join(map(printable, lines)), style=row_style or _RICH_STYLES[self.style])


@dataclass(frozen=True)
class Column:
    """A heading and a cell for each row."""

    heading: str
    cells: Sequence[Cell]
    brief: str | None = None
    """The heading in the terminal, if it differs."""
    group: int = 0
    """The terminal has a separate table for each group of columns, so that each fits into 80 characters."""
    is_on_page_only: bool = False
    is_text: bool = False
    """Text, not numbers: left-aligned."""
    color: str = ""
    """Of the dot before the heading, on a page."""


@dataclass(frozen=True)
class Row:
    label: str
    detail: str = ""
    """Small below the label; in the terminal a separate column, if the table has a heading for it."""
    color: str = ""
    """Of the dot before the label, on a page."""
    part: float | None = None
    """A fraction, shown as a bar on a page."""
    is_best: bool = False


@dataclass(frozen=True)
class Remark:
    label: str
    lines: Sequence[str]
    is_bad: bool = False


@dataclass(frozen=True)
class ResultTable:
    """Rows, columns, and what a reader must know about them."""

    heading: str
    """Heading of the rows' labels."""
    rows: Sequence[Row]
    columns: Sequence[Column]
    detail_heading: str = ""
    explanation: str = ""
    """What the columns mean; shown on a page only, for lack of room in a terminal."""
    notes: Sequence[str] = ()
    """How to read the numbers."""
    remarks: Sequence[Remark] = ()
    caveats: Sequence[str] = ()
    """Where the method fails; listed at the end of a page."""

    def transposed(self, heading: str) -> "ResultTable":
        columns = [
            Column(row.label, [column.cells[place] for column in self.columns]) for place, row in enumerate(self.rows)
        ]
        rows = [Row(column.heading) for column in self.columns]
        return replace(self, heading=heading, rows=rows, columns=columns)

    def to_rich(self, max_rows: int | None = None) -> Group:
        """For the terminal: a table for each group of columns, then notes and remarks."""
        shown = [column for column in self.columns if not column.is_on_page_only]
        rows = self.rows[:max_rows]
        tables = [self._rich_table(list(columns), rows) for _, columns in groupby(shown, lambda column: column.group)]
        more = [f"and {len(self.rows) - len(rows)} more"] if len(rows) < len(self.rows) else []
        notes = [Text(printable(note), style="dim") for note in (*more, *self.notes)]
        remarks = [
            Text(printable(f"{remark.label}: {' '.join(remark.lines)}"), style="yellow" if remark.is_bad else "")
            for remark in self.remarks
            if remark.lines
        ]
        return Group(*tables, *notes, *remarks)

    def _rich_table(self, columns: Sequence[Column], rows: Sequence[Row]) -> Table:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True, header_style="dim")
        table.add_column(Text(printable(self.heading)), overflow="fold")
        if self.detail_heading:
            table.add_column(Text(printable(self.detail_heading)), overflow="fold")
        styles = ["bold green" if row.is_best else "" for row in rows]
        of_columns = [
            [cell.to_rich(style) for cell, style in zip(column.cells, styles, strict=False)] for column in columns
        ]
        for column, texts in zip(columns, of_columns, strict=True):
            table.add_column(
                Text(printable(column.heading if column.brief is None else column.brief)),
                justify="left" if column.is_text else "right",
                overflow="fold",
                no_wrap=any("\n" in text.plain for text in texts),
            )
        for place, (row, style) in enumerate(zip(rows, styles, strict=True)):
            names = [row.label, row.detail] if self.detail_heading else [row.label]
            before = [Text(printable(name), style=style) for name in names]
            table.add_row(*before, *(texts[place] for texts in of_columns))
        return table

    def to_html(self) -> Markup:
        """For a page; values are shown as text, never as markup. Empty without rows."""
        return Markup(environment("orchestrator.views.report").get_template("table.html").render(table=self))

    def to_csv(self) -> str:
        """A line for each row: every column's values, followed by their half widths and errors if any are known."""
        columns: list[list[object]] = [[self.heading, *(row.label for row in self.rows)]]
        for column in self.columns:
            values = (cell.text if cell.value is None else cell.value for cell in column.cells)
            columns.append([column.heading, *values])  # a domain may be called like another column
            for what in ("half_width", "held_out_error"):
                numbers = [getattr(cell, what) for cell in column.cells]
                if any(number is not None for number in numbers):
                    columns.append([f"{column.heading} {what}", *numbers])
        text = io.StringIO(newline="")
        csv.writer(text).writerows(zip(*columns, strict=True))
        return text.getvalue()


def change_cell(loss_nats: float | None, base_nats: float | None, error: float | None = None) -> Cell:
    """Loss minus base loss with sign and standard error, styled as better or worse if the change is clear."""
    if loss_nats is None or base_nats is None or not math.isfinite(loss_nats - base_nats):
        return Cell(NOTHING, style="same")
    change = loss_nats - base_nats
    return Cell(f"{change:+.3f}", format_error(error), verdict(change, error))


def best_marked(
    cells: Sequence[Cell], values: Sequence[float | None], is_higher_better: bool | None = False
) -> list[Cell]:
    """The cells of a column with the best of at least two known values marked; none if no direction is better."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    best = None if len(finite) < 2 or is_higher_better is None else (max if is_higher_better else min)(finite)
    return [
        replace(cell, style="best") if best is not None and value == best else cell
        for cell, value in zip(cells, values, strict=True)
    ]


def columns_of(headings: Sequence[str], rows: Iterable[Sequence[Cell | str]]) -> list[Column]:
    cells = [[Cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    return [Column(heading, [row[place] for row in cells]) for place, heading in enumerate(headings)]


@cache
def environment(*packages: str) -> Environment:
    """Templates from these packages, in order of precedence; values are shown as text, never as markup."""
    loader = ChoiceLoader([PackageLoader(package) for package in packages])
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    made.filters |= {"loss": format_loss, "share": format_share, "change": change_cell}
    return made
