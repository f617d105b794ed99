"""Rows of JSON text: one object per line, or the elements of one array."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from workers.data.files import BadRow, Shard
from workers.data.formats.values import RowError
from workers.data.framing import MAX_ROW_BYTES, Frame


def read_json(
    name: str, shard: Shard, split: Callable[[Iterator[bytes]], Iterator[Frame]], chunks: Iterator[bytes]
) -> Iterator[tuple[int, Any] | BadRow]:
    """The shard's rows.

    Raises:
        DamagedFile: the file cannot be read any further.
    """
    is_empty = True
    for line, raw in split(chunks):
        is_empty = False
        if shard.count > 1 and not shard.owns(line):
            continue
        try:
            yield line, parse_row(raw)
        except RowError as error:
            yield BadRow(name, line, str(error))
    if is_empty and shard.owns(1):
        yield BadRow(name, 1, "the file is empty")


def parse_row(raw: bytes | None) -> Any:
    """The value of a row without surrounding spaces; None stands for a row that is too long.

    Raises:
        RowError: it is not JSON, or an object in it has a duplicate key, so that a value would be lost.
    """
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
