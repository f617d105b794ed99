"""Rows of one file as a stream: JSON, CSV, Parquet or Arrow, plain or compressed.

Whatever the file contains, memory stays flat and nothing raises: a row that cannot be read is a BadRow with its line,
and so is the place from which a damaged file cannot be read any further; a file that is not what its name says is one
BadRow that says what it is. Blank lines are skipped. A line ends with \\n, \\r\\n or \\r; the line of an array element
or a CSV row is where it starts, that of a Parquet or Arrow row its number from 1.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workers.data.arrow_rows import read_ipc, read_parquet
from workers.data.contents import foreign_file, foreign_text, read_head
from workers.data.files import BadRow, Shard, split_suffix
from workers.data.framing import DamagedFile, split_json, split_lines
from workers.data.streams import ZSTD_WINDOW_MIB, peek, read_text
from workers.data.text_rows import LIST_COLUMNS, read_csv, read_json

Rows = Iterator[tuple[int, Any] | BadRow]


def read_rows(
    path: Path,
    shard: Shard,
    zstd_window_mib: int = ZSTD_WINDOW_MIB,
    list_columns: frozenset[str] = LIST_COLUMNS,
) -> Rows:
    """The shard's rows: (line, parsed row), or a BadRow. `list_columns` of a CSV file may hold JSON lists.

    Raises:
        ValueError: the file type is unknown.
    """
    layout, compression = split_suffix(path)
    try:
        head = read_head(path)
    except OSError as error:
        return iter([BadRow(str(path), 1, f"cannot be opened: {error.strerror}")] if shard.owns(1) else [])
    if not head:
        return iter([BadRow(str(path), 1, "the file is empty")] if shard.owns(1) else [])
    if reason := foreign_file(path, head, layout, compression):
        return iter([BadRow(str(path), 1, reason)] if shard.owns(1) else [])
    if layout == ".parquet":
        return read_parquet(path, shard)
    if layout in (".arrow", ".feather"):
        return read_ipc(path, shard)
    return _read_text(path, shard, layout, read_text(path, compression, zstd_window_mib), list_columns)


def _read_text(path: Path, shard: Shard, layout: str, chunks: Iterator[bytes], list_columns: frozenset[str]) -> Rows:
    head, is_whole, chunks = peek(chunks)
    if reason := foreign_text(path, head, is_whole, layout):
        if shard.owns(1):
            yield BadRow(str(path), 1, reason)
        return
    del head  # may be as long as a row
    try:
        if layout in (".csv", ".tsv"):
            yield from read_csv(str(path), shard, chunks, layout, list_columns)
        else:
            yield from read_json(str(path), shard, split_json if layout == ".json" else split_lines, chunks)
    except DamagedFile as error:
        line = max(error.line, 1)
        if shard.owns(line):
            yield BadRow(str(path), line, f"file unreadable from here on: {error.reason}")
