"""Progress bars in one look, in a terminal only."""

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.table import Column


def progress_bars(console: Console, *columns: ProgressColumn) -> Progress:
    """A bar behind the name of each task, then these columns. What others print stays where it goes."""
    name = TextColumn("{task.description}", markup=False, table_column=Column(overflow="ellipsis", no_wrap=True))
    bar = BarColumn(bar_width=30, complete_style="cyan", finished_style="green")
    is_off = not console.is_terminal
    return Progress(name, bar, *columns, console=console, disable=is_off, redirect_stdout=False, redirect_stderr=False)


def note_column() -> TextColumn:
    """The field `note` of each task."""
    return TextColumn("{task.fields[note]}", markup=False)
