"""The numbers of a .jsonl file with a "step", by column; a "time" becomes seconds since the epoch.

Lines are parsed one by one as they appear, or a whole block at once: 100,000 steps are read in a second.
"""

import bisect
import json
import math
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import json as arrow_json

from workers.clock import parse_time

MIN_BLOCK_BYTES = 1 << 16  # smaller blocks are parsed line by line, which is fast enough
MAX_LINE_BYTES = 1 << 20  # of a block, for the lines that are parsed at once
MAX_STEP = 2**53  # whole numbers up to here are exact as floats
MAX_NUMBERS = 1 << 27  # a gigabyte
_MAX_DEPTH = 20  # of a block
_NOT_64_BITS = 2.0**63  # a larger number may be an integer that no line may have
NUM_RECENT_STEPS = 50  # the current speed is averaged over these
_TIME = pa.field("time", pa.timestamp("us", "UTC"))


class TableFullError(RuntimeError):
    """A file has more numbers than a table may hold."""


class StepTable:
    """Columns of numbers by key; a nested key is "key/inner".

    A null or missing value is NaN. 100,000 lines of thirty numbers take 24 MB.
    """

    def __init__(self) -> None:
        self._steps = array("q")
        self._columns: dict[str, array[float]] = {}

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def steps(self) -> NDArray[np.int64]:
        return np.array(self._steps, dtype=np.int64)

    @property
    def last_step(self) -> int:
        """Step of the last line; 0 if there is none."""
        return self._steps[-1] if self._steps else 0

    @property
    def keys(self) -> list[str]:
        return list(self._columns)

    def column(self, key: str) -> NDArray[np.float64]:
        """The column `key`; all NaN if no line has it."""
        values = self._columns.get(key)
        return np.full(len(self), math.nan) if values is None else np.array(values, dtype=np.float64)

    def recent(self, key: str, step: int | None = None) -> NDArray[np.float64]:
        """The entries of the last NUM_RECENT_STEPS steps up to `step` (default: the last one)."""
        end = len(self) if step is None else bisect.bisect_right(self._steps, step)
        values = self._columns.get(key, array("d"))
        return np.array(values[max(0, end - NUM_RECENT_STEPS) : end], dtype=np.float64)

    def last(self, key: str) -> float:
        """The last entry; NaN if there is none."""
        values = self._columns.get(key)
        return values[-1] if values else math.nan

    def recent_seconds_per_step(self, step: int | None = None) -> float:
        """Mean duration of the last steps up to `step`; NaN before the first."""
        with np.errstate(divide="ignore", invalid="ignore"):
            seconds = self.recent("num_tokens", step) / self.recent("tokens_per_second", step)
        seconds = seconds[np.isfinite(seconds)]
        return float(seconds.mean()) if seconds.size else math.nan

    def recent_tokens_per_second(self, step: int | None = None) -> float:
        """Tokens over seconds of the last steps up to `step`; NaN before the first."""
        seconds = self.recent_seconds_per_step(step)
        return float(self.recent("num_tokens", step).mean()) / seconds if seconds > 0 else math.nan

    def append(self, record: dict[str, Any]) -> None:
        """Add one line. A resumed run repeats steps: the later line replaces those of the lost attempt.

        KeyError, TypeError or ValueError if it is not a line of numbers with a step; TableFullError.
        """
        step = _step_of(record)
        row = dict(_numbers(record))
        self._check_room(len(row.keys() | self._columns.keys()), 1)
        self._cut(step)
        num_before = len(self._steps)
        self._steps.append(step)
        self._add_columns(row, num_before)
        for key, values in self._columns.items():
            values.append(row.get(key, math.nan))

    def extend(self, block: bytes) -> bool:
        """Add a block of complete lines, with the same result as `append` for each.

        Returns: False, with nothing added, if the block is small or has anything but plain records of numbers; the
        caller then goes line by line.
        """
        columns = _parse(block) if len(block) >= MIN_BLOCK_BYTES else None
        if columns is None:
            return False
        self._check_room(len(columns.keys() | self._columns.keys()), len(columns["step"]))
        steps = columns.pop("step").astype(np.int64)
        lowest_after = np.minimum.accumulate(steps[::-1])[::-1]
        is_last = np.append(steps[:-1] < lowest_after[1:], True)
        self._cut(int(lowest_after[0]))
        num_before = len(self._steps)
        self._steps.frombytes(steps[is_last].tobytes())
        self._add_columns(columns, num_before)
        missing = np.full(len(steps), math.nan)
        for key, values in self._columns.items():
            values.frombytes(columns.get(key, missing)[is_last].tobytes())
        return True

    def _add_columns(self, keys: Iterable[str], num_before: int) -> None:
        for key in keys:
            if key not in self._columns:
                self._columns[key] = array("d", [math.nan]) * num_before

    def _check_room(self, num_columns: int, num_new: int) -> None:
        if num_columns * (len(self._steps) + num_new) > MAX_NUMBERS:
            at = f"{len(self._steps):,} steps of {num_columns:,} numbers"
            raise TableFullError(f"has more than {MAX_NUMBERS:,} numbers: no more is read after {at}")

    def _cut(self, step: int) -> None:
        """Remove `step` and everything after it."""
        if self._steps and self._steps[-1] >= step:
            num_kept = bisect.bisect_left(self._steps, step)
            del self._steps[num_kept:]
            for values in self._columns.values():
                del values[num_kept:]


def _step_of(record: dict[str, Any]) -> int:
    step = float(record["step"])
    if not (0 <= step <= MAX_STEP and step.is_integer()):
        raise ValueError(f"{record['step']} is not the number of a step")
    return int(step)


def _numbers(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}/")
        elif key == "time" and not prefix:
            yield key, math.nan if value is None else parse_time(value)
        elif prefix or key != "step":
            yield prefix + key, math.nan if value is None else float(value)  # float() also reads "NaN", "Infinity"


def _parse(block: bytes) -> dict[str, NDArray[np.float64]] | None:
    """The columns of a block of lines; None if it is not certain that each line is a record of numbers with a step."""
    try:
        # A key that comes later stays. With others, arrow would make a column for each, of any number.
        keys = _merged(*(json.loads(line) for line in (block[: block.index(b"\n")], block[:-1].rpartition(b"\n")[2])))
        schema = pa.schema([_TIME if field.name == _TIME.name else field for field in _struct(keys)])
        if _num_values(keys) * block.count(b"\n") > len(block):  # most lines lack most of these
            return None
        read = arrow_json.ReadOptions(block_size=MAX_LINE_BYTES)  # one thread for each part of this size
        parse = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
        table = arrow_json.read_json(pa.BufferReader(block), read, parse).combine_chunks()
        columns = dict(_columns(zip(table.column_names, table.itercolumns(), strict=True)))
    # pyarrow's errors are ValueErrors; JSON other than an object has no items
    except (ValueError, AttributeError, RecursionError):
        return None
    steps = columns.get("step")
    if steps is None or table.num_rows != block.count(b"\n") or not np.array_equal(steps, np.trunc(steps)):
        return None
    if steps.min() < 0 or steps.max() > MAX_STEP or any(map(_has_large, columns.values())):
        return None
    return columns


def _has_large(values: NDArray[np.float64]) -> bool:
    size = np.abs(values)
    return bool(((size >= _NOT_64_BITS) & (size < math.inf)).any())


def _merged(one: Any, other: Any) -> Any:
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return other if one is None else one
    return one | {key: _merged(one.get(key), value) for key, value in other.items()}


def _struct(record: dict[str, Any], depth: int = 0) -> pa.StructType:
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested more than {_MAX_DEPTH} levels deep")
    return pa.struct([(k, _struct(v, depth + 1) if isinstance(v, dict) else pa.float64()) for k, v in record.items()])


def _num_values(record: dict[str, Any]) -> int:
    return sum(_num_values(value) if isinstance(value, dict) else 1 for value in record.values())


def _columns(named: Iterable[tuple[str, Any]], prefix: str = "") -> Iterator[tuple[str, NDArray[np.float64]]]:
    for name, values in named:
        if isinstance(values, pa.ChunkedArray):
            values = values.chunk(0)
        if pa.types.is_struct(values.type):
            fields = [field.name for field in values.type]
            yield from _columns(zip(fields, values.flatten(), strict=True), f"{prefix}{name}/")
        elif pa.types.is_null(values.type):
            yield prefix + name, np.full(len(values), math.nan)
        elif pa.types.is_float64(values.type):
            yield prefix + name, _floats(values)
        elif values.type == _TIME.type:
            yield prefix + name, _floats(values.cast(pa.int64()).cast(pa.float64())) / 1e6
        elif pa.types.is_integer(values.type):
            yield prefix + name, values.to_numpy(zero_copy_only=False).astype(np.float64)
        else:
            raise ValueError(f"{prefix}{name} is not a number")


def _floats(values: pa.Array) -> NDArray[np.float64]:
    """Values with null as NaN. Arrow's conversion to numpy imports pandas, which is slower than 100,000 lines."""
    validity, data = values.buffers()
    numbers = np.frombuffer(data, np.float64, len(values), 8 * values.offset)
    if not values.null_count:
        return numbers
    bits = np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")
    return np.where(bits[values.offset : values.offset + len(values)], numbers, math.nan)
