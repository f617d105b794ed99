"""What a page or a view of the terminal shows, taken apart: numbers, which stay, and titles, which may be reworded.

Sentences are kept as the numbers in them, so that their wording is free; what says nothing in numbers is not kept.
"""

import io
import json
import re
from html.parser import HTMLParser
from typing import Any

from rich.console import Console, RenderableType

# A hyphen behind a word or a number is no sign, and digits inside a word are no number.
_NUMBER = re.compile(r"(?:(?<!\w)[-+\u00b1])?(?<![A-Za-z_.\d])\d+(?:,\d{3})*(?:\.\d+)?(?!\.?[A-Za-z_\d])%?")
_WIDTH = 1000  # no sentence is broken
_TITLES = ("h1", "h2", "figcaption", "dt")
_SENTENCES = ("p", "li", "summary")
_ARRAYS = ("x", "y", "z", "text", "customdata")
_DIGITS = 6


class _Page(HTMLParser):
    """Reads tables, facts, titles and sentences."""

    def __init__(self) -> None:
        super().__init__()
        self.columns: list[list[str]] = []
        self.rows: list[list[str]] = []
        self.titles: list[str] = []
        self.facts: list[str] = []
        self.sentences: list[str] = []
        self.figures: list[dict[str, Any]] = []
        self._cells: list[str] = []
        self._text = ""
        self._skips = False
        self._is_data = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style"):
            self._skips, self._is_data = True, ("id", "figures") in attrs
        if tag == "tr":
            self._cells = []
        if tag in ("td", "th", "dd", *_TITLES, *_SENTENCES):
            self._text = ""

    def handle_data(self, data: str) -> None:
        if self._is_data:
            self.figures = json.loads(data)
        if not self._skips:
            self._text += data

    def handle_endtag(self, tag: str) -> None:
        text = " ".join(self._text.split())
        if tag in ("script", "style"):
            self._skips = self._is_data = False
        elif tag in ("td", "th"):
            self._cells.append(text)
        elif tag == "thead":
            self.columns.append(self.rows.pop())
        elif tag == "tr":
            self.rows.append(self._cells)
        elif tag == "dd":
            self.facts.append(text)
        elif tag in _TITLES:
            self.titles.append(text)
        elif tag in _SENTENCES:
            self.sentences.append(text)


def read_page(html: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(Numbers, titles) of a page: rows, facts, numbers in sentences, and the figures' data; headings and names."""
    page = _Page()
    page.feed(html)
    in_sentences = (" ".join(_NUMBER.findall(sentence)) for sentence in page.sentences)
    numbers = {
        "rows": [[label, *map(_number_or_gap, cells)] for label, *cells in page.rows],
        "facts": [fact for fact in page.facts if _has_digit(fact)],
        "sentences": sorted(found for found in in_sentences if found),
        "figures": [_figure(figure) for figure in page.figures],
    }
    names = [[trace.get("name", "") for trace in figure["data"]] for figure in page.figures]
    return numbers, {"headings": page.titles, "columns": page.columns, "traces": names}


def read_view(view: RenderableType) -> list[list[str]]:
    """As `read_lines`, of what is printed."""
    console = wide_console()
    console.print(view)
    return read_lines(console)


def wide_console() -> Console:
    """A console that keeps what is printed, for `read_lines`."""
    return Console(file=io.StringIO(), width=_WIDTH, force_terminal=False, color_system=None)


def read_lines(console: Console) -> list[list[str]]:
    """What was printed that has numbers: [first word, numbers ...] of a table's rows, then ["", numbers ...] of
    sentences, which may come in any order."""
    assert isinstance(console.file, io.StringIO)
    lines = [line.strip() for line in console.file.getvalue().splitlines()]
    parts = [(line.split()[0] if "  " in line else "", line) for line in lines]
    found = [[label, *_NUMBER.findall(line.removeprefix(label))] for label, line in parts]
    told = [numbers for numbers in found if len(numbers) > 1]
    return [numbers for numbers in told if numbers[0]] + sorted(numbers for numbers in told if not numbers[0])


def _number_or_gap(cell: str) -> str:
    """A cell's text where it is a number or the dash for none; words may be reworded."""
    return cell if _has_digit(cell) or not any(map(str.isalpha, cell)) else "words"


def _has_digit(text: str) -> bool:
    return any(map(str.isdigit, text))


def _figure(figure: dict[str, Any]) -> dict[str, Any]:
    shapes = [{key: shape[key] for key in ("x0", "x1", "y0", "y1")} for shape in figure["layout"].get("shapes", [])]
    return {"traces": [_trace(trace) for trace in figure["data"]], "shapes": _rounded(shapes)}


def _trace(trace: dict[str, Any]) -> dict[str, Any]:
    found = {key: trace[key] for key in _ARRAYS if key in trace}
    errors = {key: trace["error_y"][key] for key in ("array", "arrayminus") if key in trace.get("error_y", {})}
    return {key: _rounded(value) for key, value in (found | errors).items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, _DIGITS) + 0.0 if isinstance(value, float) else value
