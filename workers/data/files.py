"""Rows of one file as a stream: JSON lines, a JSON array or Parquet, plain or compressed.

Whatever the file holds, memory stays flat and nothing raises: a row that cannot be read is a BadRow with its line, and
so is the place from which a damaged file cannot be read on. Blank lines are no rows. A line ends with \\n, \\r\\n or
\\r; the line of an array's element is the line where it starts, that of a Parquet row its number from 1.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import zstandard

from workers.data.framing import MAX_ROW_BYTES, DamagedFile, Frame, split_json, split_lines

ROWS_PER_BLOCK = 512
_CHUNK_BYTES = 2**18
# A Zstandard block of 4 bytes can stand for 128 KiB, so this much input makes at most 2 MiB of output.
_ZSTD_INPUT_BYTES = 64
# Text shrinks to a tenth, seldom to a hundredth; a file that grows more than this is a bomb.
_MAX_EXPANSION = 200
_ALWAYS_ALLOWED_BYTES = 64 * 2**20


class RowError(ValueError):
    """Why a row cannot be used: "kind" or "kind: details"."""


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


def read_rows(path: Path, shard: Shard) -> Iterator[tuple[int, Any] | BadRow]:
    """The shard's rows: (line, parsed row), or a BadRow."""
    layout, compression = split_suffix(path)
    if layout == ".parquet":
        return _read_parquet(path, shard)
    return _read_json(path, shard, split_lines if layout == ".jsonl" else split_json, compression)


def split_suffix(path: Path) -> tuple[str, str]:
    """(".jsonl", ".gz") of `x.jsonl.gz`; ValueError where the file is of no known kind."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in (".gz", ".zst") else ""
    layout = suffixes[-1] if suffixes else ""
    if layout not in (".jsonl", ".json", ".parquet") or (layout == ".parquet" and compression):
        raise ValueError(f"{path}: not a .jsonl, .json (both also .gz or .zst) or .parquet file")
    return layout, compression


def _read_json(
    path: Path, shard: Shard, split: Callable[[Iterator[bytes]], Iterator[Frame]], compression: str
) -> Iterator[tuple[int, Any] | BadRow]:
    is_empty = True
    try:
        for line, raw in split(_decompressed(path, compression)):
            is_empty = False
            if not shard.owns(line):
                continue
            try:
                yield line, _parse(raw)
            except RowError as error:
                yield BadRow(str(path), line, str(error))
    except DamagedFile as error:
        is_empty = False
        if shard.owns(error.line):
            yield BadRow(str(path), error.line, f"file unreadable from here on: {error.reason}")
    if is_empty and shard.owns(1):
        yield BadRow(str(path), 1, "the file is empty")


def _parse(raw: bytes | None) -> Any:
    if raw is None:
        raise RowError(f"longer than {MAX_ROW_BYTES // 2**20} MiB")
    if b"\0" in raw:
        raise RowError("NUL byte")
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8: byte {error.start}") from None
    except RecursionError:
        raise RowError("nested too deep") from None
    except ValueError as error:
        raise RowError(f"not JSON: {error}") from None


def _decompressed(path: Path, compression: str) -> Iterator[bytes]:
    """The bytes of a file in pieces of bounded size, the first never with a byte order mark."""
    open_file = {"": _plain_chunks, ".gz": _gzip_chunks, ".zst": _zstd_chunks}[compression]
    limit = max(_ALWAYS_ALLOWED_BYTES, _MAX_EXPANSION * path.stat().st_size)
    num_bytes = 0
    try:
        for chunk in open_file(path):
            yield chunk.removeprefix(b"\xef\xbb\xbf") if num_bytes == 0 else chunk
            num_bytes += len(chunk)
            if num_bytes > limit:
                raise DamagedFile(f"it grows to more than {_MAX_EXPANSION} times its size when decompressed")
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DamagedFile(str(error)) from None


def _plain_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _gzip_chunks(path: Path) -> Iterator[bytes]:
    with gzip.open(path, "rb") as file:
        while chunk := file.read1(_CHUNK_BYTES):  # read() would lose what it holds when the file ends early
            yield chunk


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    frame = None
    for chunk in _plain_chunks(path):
        for start in range(0, len(chunk), _ZSTD_INPUT_BYTES):
            piece = chunk[start : start + _ZSTD_INPUT_BYTES]
            while piece:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                if output := frame.decompress(piece):
                    yield output
                piece = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the last Zstandard frame is cut off")


def _read_parquet(path: Path, shard: Shard) -> Iterator[tuple[int, Any] | BadRow]:
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        if shard.index == 0:
            yield BadRow(str(path), 1, f"not a Parquet file: {error}")
        return
    with file:
        if file.metadata.num_rows == 0 and shard.index == 0:
            yield BadRow(str(path), 1, "the file is empty")
        mine = shard.span(file.metadata.num_rows)
        first = 0
        for group in range(file.num_row_groups):
            rows = range(first, first + file.metadata.row_group(group).num_rows)
            first = rows.stop
            if rows.stop > mine.start and rows.start < mine.stop:
                yield from _read_row_group(path, file, group, rows, mine)


def _read_row_group(
    path: Path, file: pyarrow.parquet.ParquetFile, group: int, rows: range, mine: range
) -> Iterator[tuple[int, Any] | BadRow]:
    row = rows.start
    try:
        for batch in file.iter_batches(batch_size=ROWS_PER_BLOCK, row_groups=[group]):
            wanted = range(max(row, mine.start), min(row + batch.num_rows, mine.stop))
            yield from (
                read_arrow(str(path), batch.slice(wanted.start - row, len(wanted)), wanted.start) if wanted else ()
            )
            row += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        lost = range(max(row, mine.start), min(rows.stop, mine.stop))
        if lost:
            yield BadRow(str(path), lost.start + 1, f"unreadable rows: {len(lost)} from here on: {error}")


def read_arrow(name: str, batch: pyarrow.RecordBatch | pyarrow.Table, first: int) -> Iterator[tuple[int, Any] | BadRow]:
    """The rows of an Arrow batch whose first is row `first` (from 0) of its file; nothing is decoded or opened."""
    try:
        yield from enumerate(batch.to_pylist(), start=first + 1)
        return
    except UnicodeDecodeError:
        pass  # Arrow takes the word of the file for its strings being UTF-8; find the rows that lie
    for index in range(batch.num_rows):
        try:
            yield first + index + 1, batch.slice(index, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            yield BadRow(name, first + index + 1, f"not UTF-8: byte {error.start}")
