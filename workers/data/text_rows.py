"""Rows of text files: JSON (one object per line, or the elements of one array), CSV and TSV (a header with the names of
the columns, then values, all of them text).

An empty CSV value is empty text. In a column for lists, such as `messages`, a cell that contains a JSON list becomes
that list. The line of a row is the one on which it starts; a quoted value may span several.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from workers.data.files import BadRow, Rows, Shard
from workers.data.formats.values import RowError
from workers.data.framing import MAX_ROW_BYTES, DamagedFile, Frame, split_lines

LIST_COLUMNS = frozenset({"messages", "conversations", "tools", "history"})

# The module's limit applies to the whole process and is 128 KiB by default.
csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))


def read_json(
    name: str, shard: Shard, split: Callable[[Iterator[bytes]], Iterator[Frame]], chunks: Iterator[bytes]
) -> Rows:
    """The shard's rows; DamagedFile if the file cannot be read any further."""
    is_empty = True
    for line, raw in split(chunks):
        is_empty = False
        if not shard.owns(line):
            continue
        try:
            yield line, parse_row(raw)
        except RowError as error:
            yield BadRow(name, line, str(error))
    if is_empty and shard.owns(1):
        yield BadRow(name, 1, "the file is empty")


def parse_row(raw: bytes | None) -> Any:
    """The value of a row without surrounding spaces; None stands for a row that is too long. RowError if it is not
    JSON, or an object in it has a duplicate key, so that a value would be lost."""
    if raw is None:
        raise RowError(f"longer than {MAX_ROW_BYTES // 2**20} MiB")
    if b"\0" in raw:
        raise RowError("NUL byte")
    try:
        text = raw.decode("utf-8")
        value, end = _scan(text, 0)
        if end != len(text):
            raise RowError(f"not JSON: Extra data: char {end}")
        return value
    except UnicodeDecodeError as error:
        raise not_utf8(error) from None
    except RecursionError:
        raise RowError("nested too deep") from None
    except StopIteration as stop:
        raise RowError(f"not JSON: Expecting value: char {stop.value}") from None
    except RowError:
        raise
    except ValueError as error:
        raise RowError(f"not JSON: {error}") from None


def not_utf8(error: UnicodeDecodeError) -> RowError:
    byte = error.object[error.start]
    return RowError(f"not UTF-8: byte {error.start} is 0x{byte:02x}; save the file as UTF-8, e.g. with `iconv`")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowError(f"duplicate key: `{twice[:40]}`")
    return row


# What `json.loads` calls, without its overhead: a third of the time of a short row.
_decoder: Any = json.JSONDecoder(object_pairs_hook=_object)
_scan = _decoder.scan_once


def read_csv(name: str, shard: Shard, chunks: Iterator[bytes], layout: str, list_columns: frozenset[str]) -> Rows:
    """The shard's rows, as objects of text by column; DamagedFile if the file cannot be read any further."""
    lines = split_lines(chunks, keeps_all=True)
    first = next((frame for frame in lines if frame[1] is None or frame[1].strip()), None)
    if first is None:
        if shard.owns(1):
            yield BadRow(name, 1, "the file is empty")
        return
    delimiter, is_declared = _delimiter(first[1] or b"", layout)
    records = _Records(lines if is_declared else chain([first], lines), delimiter)
    header = next(iter(records), None)
    try:
        columns = _columns(header)
    except RowError as error:
        if shard.owns(1):
            yield BadRow(name, first[0], str(error))
        return
    is_empty = True
    for line, fields in records:
        is_empty = False
        if not shard.owns(line):
            continue
        if isinstance(fields, str):
            yield BadRow(name, line, fields)
        elif len(fields) != len(columns):
            counts = f"{_count(fields, 'value')}, and the header has {_count(columns, 'name')}"
            yield BadRow(name, line, f"ragged row: {counts}")
        else:
            named = [(column, text) for column, text in zip(columns, fields, strict=True) if column]
            yield line, {column: _value(text) if column in list_columns else text for column, text in named}
    if is_empty and shard.owns(1):
        yield BadRow(name, 1, "the file is empty: it holds a header and no row")


def _count(things: list[str], what: str) -> str:
    return f"{len(things)} {what}{'' if len(things) == 1 else 's'}"


def _delimiter(header: bytes, layout: str) -> tuple[str, bool]:
    """(the separator, whether the line only declares it, as spreadsheets write it: `sep=;`)."""
    if declared := re.fullmatch(rb"sep=([,;|\t])\s*", header):
        return declared[1].decode(), True
    if layout == ".tsv":
        return "\t", False
    outside_quotes = re.sub(rb'"(?:[^"]|"")*"', b"", header)
    marks = [mark for mark in (",", ";", "\t", "|") if mark.encode() in outside_quotes]
    return marks[0] if marks else ",", False


def _columns(header: tuple[int, list[str] | str] | None) -> list[str]:
    """The names; "" for a column without a name, such as pandas' index, which is left out of the rows."""
    fields = header[1] if header else []
    if isinstance(fields, str):
        raise RowError(f"no header: {fields}")
    columns = [field.strip() for field in fields]
    for column in columns:
        if column and columns.count(column) > 1:
            raise RowError(f"duplicate column: `{column[:40]}`")
    if not any(columns):
        raise RowError("no header: the first line names no column")
    return columns


def _value(text: str) -> Any:
    """The JSON list in a cell, otherwise its text."""
    if not text.lstrip().startswith("["):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


class _Records:
    """The records of CSV lines: (first line, values or why they cannot be used)."""

    def __init__(self, lines: Iterator[Frame], delimiter: str) -> None:
        self._lines = lines
        self._reader = csv.reader(self._texts(), delimiter=delimiter, strict=True)
        self._raw: list[bytes] = []  # the lines of the record being read
        self._num_bytes = 0
        self._start = 1
        self._is_too_long = False

    def __iter__(self) -> Iterator[tuple[int, list[str] | str]]:
        while True:
            self._raw.clear()
            self._num_bytes = 0
            self._is_too_long = False
            try:
                fields = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "end of data" in str(error):
                    raise DamagedFile("a quote that opens in this row is never closed", self._start) from None
                hint = ' (write a quote inside quotes as "")' if '"' in str(error) else ""
                yield self._start, f"not CSV: {error}{hint}"
                continue
            if self._is_too_long:
                yield self._start, f"longer than {MAX_ROW_BYTES // 2**20} MiB"
            elif fields:
                yield self._start, self._fault() or fields

    def _fault(self) -> str | None:
        for raw in self._raw:
            if b"\0" in raw:
                return "NUL byte"
        raw = b"".join(self._raw)
        if raw.isascii():
            return None
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            return str(not_utf8(error))
        return None

    def _texts(self) -> Iterator[str]:
        for line, raw in self._lines:
            if not self._raw and not self._is_too_long:
                self._start = line
            self._num_bytes += len(raw or b"")
            if raw is None and not self._raw:
                self._is_too_long = True
                yield "too long\n"
                continue
            if raw is None or self._num_bytes > MAX_ROW_BYTES:
                mib = MAX_ROW_BYTES // 2**20
                raise DamagedFile(f"a quote that opens in this row is not closed within {mib} MiB", self._start)
            self._raw.append(raw)
            yield raw.decode("utf-8", "surrogateescape")
