"""Rows of a Parquet file. Columns that cannot be part of a row of text, such as times and images, are not read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pyarrow.types as kinds

from workers.data.arrow_rows import is_decoded, marker, read_arrow, refuse_columns
from workers.data.files import ROWS_PER_BLOCK, BadRow, Shard, one_line

_ERRORS = (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError, NotImplementedError)


def read_parquet(path: Path, shard: Shard) -> Iterator[tuple[int, Any] | BadRow]:
    """The shard's rows."""
    try:
        file = pyarrow.parquet.ParquetFile(path)
        schema, num_rows = file.schema_arrow, file.metadata.num_rows
    except _ERRORS as error:
        if shard.index == 0:
            yield BadRow(str(path), 1, f"not a Parquet file: {one_line(error)}")
        return
    with file:
        reason = refuse_columns(schema) or ("the file is empty" if num_rows == 0 else None)
        if reason:
            if shard.index == 0:
                yield BadRow(str(path), 1, reason)
            return
        mine = shard.span(num_rows)
        first = 0
        for group in range(file.num_row_groups):
            rows = range(first, first + file.metadata.row_group(group).num_rows)
            first = rows.stop
            if rows.stop > mine.start and rows.start < mine.stop:
                yield from _read_row_group(path, file, group, rows, mine)


def _read_row_group(
    path: Path, file: pyarrow.parquet.ParquetFile, group: int, rows: range, mine: range
) -> Iterator[tuple[int, Any] | BadRow]:
    fields = list(file.schema_arrow)
    unread = {field.name: marker(str(field.type)[:60]) for field in fields if not _is_read(field.type)}
    columns = [field.name for field in fields if field.name not in unread]
    row = rows.start
    try:
        for batch in file.iter_batches(batch_size=ROWS_PER_BLOCK, row_groups=[group], columns=columns):
            wanted = range(max(row, mine.start), min(row + batch.num_rows, mine.stop))
            if wanted:
                piece = batch.slice(wanted.start - row, len(wanted))
                found = read_arrow(piece, wanted.start)
                yield from ((line, value | unread) for line, value in found) if unread else found
            row += batch.num_rows
    except _ERRORS as error:
        lost = range(max(row, mine.start), min(rows.stop, mine.stop))
        if lost:
            yield BadRow(str(path), lost.start + 1, f"unreadable rows: {len(lost)} from here on: {one_line(error)}")


def _is_read(kind: pyarrow.DataType) -> bool:
    """Whether a column is read: not if it is a scalar of another type, or an object with bytes such as an image."""
    if isinstance(kind, pyarrow.BaseExtensionType):
        kind = kind.storage_type
    if kinds.is_struct(kind):
        return all(_is_read(kind.field(index).type) for index in range(kind.num_fields))
    return kinds.is_nested(kind) or kinds.is_dictionary(kind) or is_decoded(kind)
