"""Rows of Arrow data: Parquet, IPC files (.arrow, Feather), streams as `save_to_disk` writes them, and other batches.

Only what a row of text can consist of is decoded: text, numbers, booleans, and lists and objects of them. Anything else
(times, decimals, bytes, ...) becomes a marker whose class is named after its type, so that an unused column never
prevents reading, whatever is in it.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pyarrow.types as kinds

from workers.data.files import ROWS_PER_BLOCK, BadRow, LostRows, Rows, Shard, one_line

_NOT_UTF8 = "bytes that are not UTF-8"
_DAMAGED = "damaged"
# A value that does not have the type of its column, or exceeds a limit of Python.
_DECODING_ERRORS = (pyarrow.ArrowException, ValueError, OverflowError, TypeError, KeyError, NotImplementedError)
_PARQUET_ERRORS = (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError, NotImplementedError)


def read_ipc(path: Path, shard: Shard) -> Rows:
    next_row = 0
    try:
        with pyarrow.memory_map(str(path)) as file:
            for batch in _batches(file):
                if next_row == 0 and (reason := refuse_columns(batch.schema)):
                    if shard.owns(1):
                        yield BadRow(str(path), 1, reason)
                    return
                batch.validate()  # otherwise a batch may claim any number of rows
                yield from _blocks(batch, next_row, shard)
                next_row += batch.num_rows
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        if shard.owns(next_row + 1):
            what = "unreadable from here on" if next_row else "not an Arrow file"
            yield LostRows(str(path), next_row + 1, f"{what}: {one_line(error)}")
        return
    if next_row == 0 and shard.owns(1):
        yield BadRow(str(path), 1, "the file is empty")


def _batches(file: pyarrow.MemoryMappedFile) -> Iterator[pyarrow.RecordBatch]:
    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    if is_file:
        reader = pyarrow.ipc.open_file(file)
        yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        yield from pyarrow.ipc.open_stream(file)


def _blocks(batch: pyarrow.RecordBatch, first: int, shard: Shard) -> Rows:
    row = max(first, shard.after)
    suspects: frozenset[str] | None = None
    while row < first + batch.num_rows:
        end = min((row // ROWS_PER_BLOCK + 1) * ROWS_PER_BLOCK, first + batch.num_rows)
        if shard.owns(row + 1):
            if suspects is None:  # once per batch: checking a slice of lists checks all their values
                columns = zip(batch.schema.names, batch.columns, strict=True)
                suspects = frozenset(name for name, column in columns if not _is_sound(column))
            yield from read_arrow(batch.slice(row - first, end - row), row, suspects)
        row = end


def refuse_columns(schema: pyarrow.Schema) -> str | None:
    """Why rows with these columns would lose values; None if they would not."""
    for name in schema.names:
        if schema.names.count(name) > 1:
            return f"duplicate column: `{name[:40]}`"
    return None


def read_arrow(
    batch: pyarrow.RecordBatch | pyarrow.Table, first: int, suspects: frozenset[str] = frozenset()
) -> Iterator[tuple[int, Any]]:
    """The rows of an Arrow batch that starts at row `first` (from 0) of its file; no file is opened.

    `suspects` are columns from outside whose offsets or texts are invalid.
    """
    if not suspects and all(is_decoded(kind) for kind in batch.schema.types):
        try:
            rows = batch.to_pylist()
        except _DECODING_ERRORS:
            pass  # find the damaged values
        else:
            yield from enumerate(rows, start=first + 1)
            return
    names = batch.schema.names
    columns = [_decode(column, name in suspects) for name, column in zip(names, batch.columns, strict=True)]
    for index in range(batch.num_rows):
        yield first + index + 1, {name: column[index] for name, column in zip(names, columns, strict=True)}


def _is_sound(column: pyarrow.Array) -> bool:
    try:
        column.validate(full=True)
    except _DECODING_ERRORS:
        return False
    return True


@cache
def _marker(name: str) -> object:
    """A placeholder for a value that is not decoded; messages name its class."""
    return type(name, (), {})()


def is_decoded(kind: pyarrow.DataType) -> bool:
    """Whether values of this type are decoded, at every depth."""
    if isinstance(kind, pyarrow.BaseExtensionType):
        return False  # decoded by its storage type
    if kinds.is_struct(kind):
        names = [kind.field(index).name for index in range(kind.num_fields)]
        return len(set(names)) == len(names) and all(is_decoded(kind.field(i).type) for i in range(kind.num_fields))
    if kinds.is_map(kind):
        return is_decoded(kind.key_type) and is_decoded(kind.item_type)
    if kinds.is_dictionary(kind) or _has_lists(kind):
        return is_decoded(kind.value_type)
    scalars = (kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_null)
    return _is_text(kind) or any(check(kind) for check in scalars)


def _is_text(kind: pyarrow.DataType) -> bool:
    return any(check(kind) for check in (kinds.is_string, kinds.is_large_string, kinds.is_string_view))


def _has_lists(kind: pyarrow.DataType) -> bool:
    return any(check(kind) for check in (kinds.is_list, kinds.is_large_list, kinds.is_fixed_size_list))


def _decode(column: pyarrow.Array | pyarrow.ChunkedArray, is_suspect: bool) -> list[Any]:
    if isinstance(column, pyarrow.ChunkedArray):
        return [value for chunk in column.chunks for value in _decode(chunk, is_suspect)]
    if is_decoded(column.type) and not is_suspect:
        try:
            return column.to_pylist()
        except _DECODING_ERRORS:
            pass  # find the damaged values
    try:
        return _decode_parts(column)
    except _DECODING_ERRORS:
        return [_marker(_DAMAGED)] * len(column)


def _decode_parts(array: pyarrow.Array) -> list[Any]:
    """The values of an array, part by part, each checked before it is touched."""
    kind = array.type
    if isinstance(array, pyarrow.ExtensionArray):
        return _decode_parts(array.storage)
    if kinds.is_dictionary(kind):
        array.indices.validate(full=True)
        words, indices = _decode_parts(array.dictionary), array.indices.to_pylist()
        return [
            None if index is None else words[index] if 0 <= index < len(words) else _marker(_DAMAGED)
            for index in indices
        ]
    if kinds.is_struct(kind):
        return _decode_objects(array)
    if _has_lists(kind):
        return _decode_lists(array)
    if _is_text(kind):
        return _decode_texts(array)
    if is_decoded(kind):
        array.validate(full=True)
        return array.to_pylist()
    unread = _marker(str(kind)[:60])
    return [unread if is_valid else None for is_valid in array.is_valid().to_pylist()]


def _decode_objects(array: pyarrow.StructArray) -> list[Any]:
    array.validate()
    names = [array.type.field(index).name for index in range(array.type.num_fields)]
    if len(set(names)) < len(names):
        unread = _marker("an object with a duplicate key")
        return [unread if is_valid else None for is_valid in array.is_valid().to_pylist()]
    parts = [_decode_parts(array.field(index)) for index in range(len(names))]
    return [
        {name: part[index] for name, part in zip(names, parts, strict=True)} if is_valid else None
        for index, is_valid in enumerate(array.is_valid().to_pylist())
    ]


def _decode_lists(array: Any) -> list[Any]:
    array.validate()
    if kinds.is_fixed_size_list(array.type):
        size = array.type.list_size
        starts = np.arange(array.offset, array.offset + len(array) + 1, dtype=np.int64) * size
    else:
        starts = array.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
    if (np.diff(starts) < 0).any() or not 0 <= starts[0] <= starts[-1] <= len(array.values):
        return [_marker(_DAMAGED)] * len(array)
    values = _decode_parts(array.values.slice(starts[0], starts[-1] - starts[0]))
    starts = (starts - starts[0]).tolist()
    return [
        values[starts[index] : starts[index + 1]] if is_valid else None
        for index, is_valid in enumerate(array.is_valid().to_pylist())
    ]


def _decode_texts(array: pyarrow.Array) -> list[Any]:
    try:
        array.validate(full=True)
        return array.to_pylist()
    except UnicodeDecodeError:
        pass
    except pyarrow.ArrowInvalid as error:
        if "UTF8" not in str(error):
            return [_marker(_DAMAGED)] * len(array)
    values: list[Any] = []
    for scalar in array:
        try:
            values.append(scalar.as_py())
        except UnicodeDecodeError:
            values.append(_marker(_NOT_UTF8))
    return values


def read_parquet(path: Path, shard: Shard) -> Rows:
    """The shard's rows."""
    try:
        file = pyarrow.parquet.ParquetFile(path)
        schema, num_rows = file.schema_arrow, file.metadata.num_rows
    except _PARQUET_ERRORS as error:
        if shard.owns(1):
            yield LostRows(str(path), 1, f"not a Parquet file: {one_line(error)}")
        return
    with file:
        reason = refuse_columns(schema) or ("the file is empty" if num_rows == 0 else None)
        if reason:
            if shard.owns(1):
                yield BadRow(str(path), 1, reason)
            return
        mine = shard.span(num_rows)
        first = 0
        for group in range(file.num_row_groups):
            rows = range(first, first + file.metadata.row_group(group).num_rows)
            first = rows.stop
            if rows.stop > mine.start and rows.start < mine.stop:
                yield from _read_row_group(path, file, group, rows, mine)


def _read_row_group(path: Path, file: pyarrow.parquet.ParquetFile, group: int, rows: range, mine: range) -> Rows:
    fields = list(file.schema_arrow)
    unread = {field.name: _marker(str(field.type)[:60]) for field in fields if not _is_column_read(field.type)}
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
    except _PARQUET_ERRORS as error:
        lost = range(max(row, mine.start), min(rows.stop, mine.stop))
        if lost:
            yield LostRows(str(path), lost.start + 1, f"unreadable rows: {len(lost)} from here on: {one_line(error)}")


def _is_column_read(kind: pyarrow.DataType) -> bool:
    """Whether a column is read: not if it is a scalar of another type, or an object with bytes such as an image."""
    if isinstance(kind, pyarrow.BaseExtensionType):
        kind = kind.storage_type
    if kinds.is_struct(kind):
        return all(_is_column_read(kind.field(index).type) for index in range(kind.num_fields))
    return kinds.is_nested(kind) or kinds.is_dictionary(kind) or is_decoded(kind)
