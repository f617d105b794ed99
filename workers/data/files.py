"""Files of rows: what kind a name says that a file is, which part of it a task reads, and what a bad row is."""

from dataclasses import dataclass
from pathlib import Path

ROWS_PER_BLOCK = 512

TEXT_LAYOUTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
TABLE_LAYOUTS = (".parquet", ".arrow", ".feather")
COMPRESSIONS = (".gz", ".zst")
KINDS = ".jsonl, .ndjson, .json, .csv, .tsv (these also .gz or .zst), .parquet, .arrow or .feather"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used."""

    file: str
    line: int
    reason: str

    @property
    def kind(self) -> str:
        """The reason without its details; there are only a few, so that they can be counted."""
        return self.reason.partition(":")[0]


@dataclass(frozen=True)
class Shard:
    """The part `index` of `count` parts of a source; all parts together are the whole, whatever the count."""

    index: int = 0
    count: int = 1

    def owns(self, line: int) -> bool:
        """Whether a line (from 1) belongs to this part: blocks of lines go round."""
        return (line - 1) // ROWS_PER_BLOCK % self.count == self.index

    def span(self, num_rows: int) -> range:
        """The rows (from 0) of this part where rows can be addressed: one stretch."""
        return range(num_rows * self.index // self.count, num_rows * (self.index + 1) // self.count)


def split_suffix(path: Path) -> tuple[str, str]:
    """(".jsonl", ".gz") of `x.jsonl.gz`; ValueError where the name is of no known kind."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    layout = suffixes[-1] if suffixes else ""
    if layout not in TEXT_LAYOUTS + TABLE_LAYOUTS or (layout in TABLE_LAYOUTS and compression):
        raise ValueError(f"{path}: not a {KINDS} file")
    return layout, compression


def one_line(error: Exception) -> str:
    """A library's words without line breaks, and not too many of them."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:300]}..."
