"""Rows of one file as a stream: JSON, CSV, Parquet or Arrow, plain or compressed, in any encoding.

Whatever the file contains, memory stays flat and nothing raises: a row that cannot be read is a BadRow with its line,
and so is the place from which a damaged file cannot be read any further; a file that is not what its name says is one
BadRow that says what it is. Blank lines are skipped. A line ends with \\n, \\r\\n or \\r; the line of an array element
or a CSV row is where it starts, that of a Parquet or Arrow row its number from 1.
"""

import codecs
import gzip
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray

from workers.config.data import DataConfig
from workers.data.arrow_rows import read_ipc, read_parquet
from workers.data.contents import foreign_file, foreign_text, read_head
from workers.data.files import ROWS_PER_BLOCK, LostRows, Rows, Shard, split_suffix
from workers.data.framing import MAX_ROW_BYTES, DamagedFile, Frame, find_blocks, split_json, split_lines
from workers.data.text_rows import LIST_COLUMNS, read_csv, read_json

ZSTD_WINDOW_MIB: int = DataConfig.model_fields["zstd_window_mib"].default

Blocks = NDArray[np.int64]
"""Bytes at which blocks of ROWS_PER_BLOCK lines begin, and where the last one ends."""
SplitRows = Callable[[Iterator[bytes]], Iterator[Frame]]

_CHUNK_BYTES = 2**18
# A Zstandard block of 4 bytes can expand to 128 KiB, so this much input gives at most 2 MiB of output.
_ZSTD_INPUT_BYTES = 64
_ZSTD_HEADER_BYTES = 18
_MAX_ZSTD_WINDOW_MIB = 2048
# Text shrinks to a tenth, rarely to a hundredth; a file that expands more than this is a bomb.
_MAX_EXPANSION = 200
_ALWAYS_ALLOWED_BYTES = 64 * 2**20
_HEAD_BYTES = 4096
# UTF-32 first: the mark of UTF-16 is the beginning of one of its marks.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_rows(
    path: Path,
    shard: Shard,
    zstd_window_mib: int = ZSTD_WINDOW_MIB,
    list_columns: frozenset[str] = LIST_COLUMNS,
    blocks: Blocks | None = None,
) -> Rows:
    """The shard's rows; ValueError if the file type is unknown.

    Args:
        list_columns: columns of a CSV file that may hold JSON lists.
        blocks: what `find_lines` found in the file, so that only the shard's bytes are read.
    """
    layout, compression = split_suffix(path)
    try:
        head = read_head(path)
        reason = foreign_file(path, head, layout, compression) if head else "the file is empty"
    except OSError as error:
        reason = f"cannot be opened: {error.strerror}"
    if reason:
        return iter([LostRows(str(path), 1, reason)] if shard.owns(1) else [])
    if layout == ".parquet":
        return read_parquet(path, shard)
    if layout in (".arrow", ".feather"):
        return read_ipc(path, shard)
    split = {".json": split_json}.get(layout, split_lines)
    if blocks is not None:
        split = partial(_split_blocks, path, shard, blocks)
    return _rows_of_text(path, shard, layout, _read_text(path, compression, zstd_window_mib), list_columns, split)


def find_lines(path: Path) -> Blocks | None:
    """Where the blocks of lines begin that shards consist of, and where the last one ends; None for a file that has to
    be read from its start: compressed, not of lines of JSON, not UTF-8, or with a blank beginning."""
    layout, compression = split_suffix(path)
    if compression or layout not in (".jsonl", ".ndjson"):
        return None
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head.strip() or any(head.startswith(mark) for mark, _ in _MARKS):
        return None
    blocks = find_blocks(_chunks(path), ROWS_PER_BLOCK)
    return blocks if head[: blocks[1]].strip() else None


def _split_blocks(path: Path, shard: Shard, blocks: Blocks, _: Iterator[bytes]) -> Iterator[Frame]:
    """The lines of the shard's blocks."""
    with path.open("rb") as file:
        for block in range(shard.index, len(blocks) - 1, shard.count):
            start, end = int(blocks[block]), int(blocks[block + 1])
            file.seek(start)
            sizes = [min(_CHUNK_BYTES, end - at) for at in range(start, end, _CHUNK_BYTES)]
            chunks: Iterator[bytes] = (file.read(size) for size in sizes)
            if block == 0:
                chunks = chain([next(chunks).removeprefix(codecs.BOM_UTF8)], chunks)
            yield from split_lines(chunks, block * ROWS_PER_BLOCK + 1)


def _rows_of_text(
    path: Path, shard: Shard, layout: str, chunks: Iterator[bytes], list_columns: frozenset[str], split: SplitRows
) -> Rows:
    head, is_whole, chunks = _peek(chunks)
    if reason := foreign_text(path, head, is_whole, layout):
        if shard.owns(1):
            yield LostRows(str(path), 1, reason)
        return
    del head  # may be as long as a row
    try:
        if layout in (".csv", ".tsv"):
            yield from read_csv(str(path), shard, chunks, layout, list_columns)
        else:
            yield from read_json(str(path), shard, split, chunks)
    except DamagedFile as error:
        line = max(error.line, 1)
        if shard.owns(line):
            yield LostRows(str(path), line, f"file unreadable from here on: {error.reason}")


def _read_text(path: Path, compression: str, zstd_window_mib: int) -> Iterator[bytes]:
    """The text of a file as UTF-8 without a byte order mark; UTF-16 and UTF-32 are recognised by theirs."""
    chunks = _decompressed(path, compression, zstd_window_mib)
    parts = [_first_piece(chunks)]  # popped when yielded: it may be long, and this frame stays alive
    encoding = next((encoding for mark, encoding in _MARKS if parts[0].startswith(mark)), None)
    if encoding:
        yield from _transcoded(parts.pop(), chunks, encoding)
    else:
        yield parts.pop().removeprefix(codecs.BOM_UTF8)
        yield from chunks


def _first_piece(chunks: Iterator[bytes]) -> bytes:
    """As many chunks as are needed to contain any byte order mark."""
    piece = b""
    for chunk in chunks:
        piece += chunk
        if len(piece) >= len(codecs.BOM_UTF32_LE):
            break
    return piece


def _peek(chunks: Iterator[bytes]) -> tuple[bytes, bool, Iterator[bytes]]:
    """(the first lines, whether that is the whole file, the same chunks again).

    The first lines include two that are not blank, if the file has them within MAX_ROW_BYTES.
    """
    taken: list[bytes] = []
    head = bytearray()
    error: DamagedFile | None = None
    is_whole = True
    first = end = -1  # where the first line that is not blank starts and ends
    try:
        for chunk in chunks:
            taken.append(chunk)
            before = len(head)
            head += chunk
            if first < 0 and (text := chunk.lstrip()):
                first = len(head) - len(text)
            if first >= 0 and end < 0:
                end = head.find(b"\n", max(first, before))
            has_two_lines = end >= 0 and bool(head[end : end + _HEAD_BYTES].strip())
            if len(head) > MAX_ROW_BYTES or (len(head) >= _HEAD_BYTES and has_two_lines):
                is_whole = False
                break
    except DamagedFile as damage:
        error, is_whole = damage, False

    def again() -> Iterator[bytes]:
        while taken:
            yield taken.pop(0)
        if error:
            raise error
        yield from chunks

    return bytes(head), is_whole, again()


def _transcoded(head: bytes, chunks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    # A lone surrogate becomes invalid UTF-8, so that it costs its row and not the file.
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    try:
        for chunk in chain([head], chunks):
            yield decoder.decode(chunk).encode("utf-8", "surrogatepass")
        yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise DamagedFile(f"its byte order mark says {encoding.upper()}, but it is not: {error.reason}") from None


def _decompressed(path: Path, compression: str, zstd_window_mib: int) -> Iterator[bytes]:
    limit = max(_ALWAYS_ALLOWED_BYTES, _MAX_EXPANSION * path.stat().st_size)
    num_bytes = 0
    try:
        opened = _zstd_chunks(path, zstd_window_mib) if compression == ".zst" else _chunks(path, compression == ".gz")
        for chunk in opened:
            yield chunk
            num_bytes += len(chunk)
            if num_bytes > limit:
                raise DamagedFile(f"it expands to more than {_MAX_EXPANSION} times its size when decompressed")
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise DamagedFile(str(error)) from None


def _chunks(path: Path, is_gzip: bool = False) -> Iterator[bytes]:
    with gzip.open(path, "rb") if is_gzip else path.open("rb") as file:
        while chunk := file.read1(_CHUNK_BYTES):  # read() would lose its buffer if the file ends early
            yield chunk


def _zstd_chunks(path: Path, window_mib: int) -> Iterator[bytes]:
    frame = None
    header = b""
    for chunk in _chunks(path):
        for start in range(0, len(chunk), _ZSTD_INPUT_BYTES):
            piece = chunk[start : start + _ZSTD_INPUT_BYTES]
            while piece:
                if frame is None:
                    frame = zstandard.ZstdDecompressor(max_window_size=window_mib * 2**20).decompressobj()
                    header = b""
                if len(header) < _ZSTD_HEADER_BYTES:
                    header += piece[:_ZSTD_HEADER_BYTES]
                try:
                    output = frame.decompress(piece)
                except zstandard.ZstdError as error:
                    raise DamagedFile(_window_reason(header, window_mib) or str(error)) from None
                if output:
                    yield output
                piece = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the last Zstandard frame is cut off")


def _window_reason(header: bytes, window_mib: int) -> str | None:
    """What to set if a frame needs a longer window than allowed."""
    try:
        needed_mib = -(-zstandard.get_frame_parameters(header).window_size // 2**20)
    except zstandard.ZstdError:
        return None
    if not window_mib < needed_mib <= _MAX_ZSTD_WINDOW_MIB:
        return None
    return (
        f"it was compressed with a Zstandard window of {needed_mib:,} MiB and data.zstd_window_mib allows "
        f"{window_mib:,}; set data.zstd_window_mib: {needed_mib} (each task that reads it needs that much memory)"
    )
