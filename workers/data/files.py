"""Files of rows: their type by name, the part that a task reads, and bad rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROWS_PER_BLOCK = 512

TEXT_LAYOUTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
TABLE_LAYOUTS = (".parquet", ".arrow", ".feather")
COMPRESSIONS = (".gz", ".zst")
KINDS = ".jsonl, .ndjson, .json, .csv, .tsv (these also .gz or .zst), .parquet, .arrow or .feather"


@dataclass(frozen=True, slots=True)
class BadRow:
    file: str
    line: int
    reason: str

    @property
    def kind(self) -> str:
        """The reason without details; there are few, so that they can be counted."""
        return self.reason.partition(":")[0]


class LostRows(BadRow):
    """A place from which a source cannot be read any further, or not for a while; it counts as one bad row."""

    __slots__ = ()


Rows = Iterator[tuple[int, Any] | BadRow]
"""(line, parsed row), or a BadRow."""


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count` parts of a source; together the parts are the whole, for any count."""

    index: int = 0
    count: int = 1
    after: int = 0
    """Lines (or rows) at the beginning that were read before, and belong to no part; then there is one part."""

    def owns(self, line: int) -> bool:
        """Whether a line (from 1) belongs to this part: blocks of lines are dealt in turn."""
        return line > self.after and (line - 1) // ROWS_PER_BLOCK % self.count == self.index

    def span(self, num_rows: int) -> range:
        """The rows (from 0) of this part if rows can be addressed: one contiguous range."""
        start = max(num_rows * self.index // self.count, self.after)
        return range(start, max(num_rows * (self.index + 1) // self.count, start))


def split_suffix(path: Path) -> tuple[str, str]:
    """(".jsonl", ".gz") of `x.jsonl.gz`; ValueError if the type is unknown."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    layout = suffixes[-1] if suffixes else ""
    if layout not in TEXT_LAYOUTS + TABLE_LAYOUTS or (layout in TABLE_LAYOUTS and compression):
        raise ValueError(f"{path}: not a {KINDS} file")
    return layout, compression


def one_line(error: Exception) -> str:
    """An error message of a library on one line, shortened."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}..."
