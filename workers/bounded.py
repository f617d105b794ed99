"""Reading files that somebody else may have put there: of a run's folder, which many may write to.

Only regular files are opened, so that no FIFO and no device keeps the reader waiting, and no more of them is read than
a file of that kind may have. JSON is read as the standard has it, with numbers that fit everywhere else.
"""

import json
import math
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

if TYPE_CHECKING:
    from pydantic import BaseModel

MAX_RECORD_BYTES = 1 << 23
"""Of a file with one record: the largest known, data.json of hundreds of domains, has a tenth of that."""
MAX_EXAMPLES_BYTES = 1 << 30
"""Of a file with a record of each held-out example: more than ten million."""
MAX_DEPTH = 50
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**64 - 1
"""64 bits, with or without a sign: seeds have none."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
Model = TypeVar("Model", bound="BaseModel")


class UnreadableFileError(ValueError):
    """What is in a place is not what belongs there; `reason` says it without the place."""

    def __init__(self, path: Path, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{path}: {reason}; restore it, or move it away")


class UnfitJSONError(ValueError):
    """JSON that no file of ours has: nested too deeply, or with numbers or text that cannot be used."""


def open_regular(path: Path, max_bytes: int) -> BinaryIO:
    """Open a regular file of at most `max_bytes`, without ever waiting for it.

    OSError if it cannot be opened, UnreadableFileError if it is something else or larger.
    """
    _check(path, path.stat(), max_bytes)  # first: opening a device may already do something
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _check(path, os.fstat(descriptor), max_bytes)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(path: Path, max_bytes: int) -> None:
    """What `open_regular` would raise, as far as that is known without opening."""
    _check(path, path.stat(), max_bytes)


def _check(path: Path, status: os.stat_result, max_bytes: int) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise UnreadableFileError(path, f"is {kind}, not a file")
    if status.st_size > max_bytes:
        raise UnreadableFileError(path, f"has {status.st_size:,} bytes, and at most {max_bytes:,} are read")


def read_bytes(path: Path, max_bytes: int = MAX_RECORD_BYTES) -> bytes:
    """The content of a file; errors as in `open_regular`, also for a file that grows meanwhile."""
    with open_regular(path, max_bytes) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UnreadableFileError(path, f"grows beyond {max_bytes:,} bytes while it is read")
    return data


def parse_json(data: bytes, *, not_finite: bool = False) -> Any:
    """The value that a JSON text stands for.

    Args:
        data: in UTF-8.
        not_finite: whether NaN and Infinity, which the standard does not have, are meant as numbers.

    ValueError if it is no JSON; UnfitJSONError, which is one, for more than MAX_DEPTH levels, integers of more than 64
    bits, text that is not Unicode, and numbers that are not finite unless they are meant.
    """
    try:
        value = json.loads(data)
    except RecursionError:
        raise UnfitJSONError(f"is nested more than {MAX_DEPTH} levels deep") from None
    refuse_unfit(value, not_finite=not_finite)
    return value


def refuse_unfit(value: Any, *, not_finite: bool = False) -> None:
    """UnfitJSONError for plain data with what `parse_json` refuses."""
    waiting = [("", value, 0)]
    while waiting:
        key, item, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise UnfitJSONError(f"is nested more than {MAX_DEPTH} levels deep")
        if isinstance(item, dict):
            _refuse_unfit_text(key, item)
            waiting += [(name, inner, depth + 1) for name, inner in item.items()]
        elif isinstance(item, list):
            waiting += [(key, inner, depth + 1) for inner in item]
        elif isinstance(item, str):
            _refuse_unfit_text(key, (item,))
        elif isinstance(item, int) and not MIN_INTEGER <= item <= MAX_INTEGER:
            raise UnfitJSONError(f"has an integer of more than 64 bits at {key!r}")
        elif isinstance(item, float) and not not_finite and not math.isfinite(item):
            raise UnfitJSONError(f"has {item} at {key!r}, where only finite numbers belong")


def _refuse_unfit_text(key: str, texts: Any) -> None:
    """Halves of surrogate pairs, which JSON can escape, cannot be written anywhere."""
    try:
        for text in texts:
            if not text.isascii():
                text.encode()
    except UnicodeEncodeError:
        raise UnfitJSONError(f"has text that is not Unicode at {key!r}") from None


def read_json(path: Path, max_bytes: int = MAX_RECORD_BYTES, *, not_finite: bool = False) -> Any:
    """The value in a file; errors as in `read_bytes`, and UnreadableFileError for all that `parse_json` refuses."""
    data = read_bytes(path, max_bytes)
    try:
        return parse_json(data, not_finite=not_finite)
    except UnfitJSONError as error:
        raise UnreadableFileError(path, str(error)) from None
    except ValueError as error:
        raise UnreadableFileError(path, f"is not JSON ({error})") from None


def read_object(path: Path, max_bytes: int = MAX_RECORD_BYTES) -> dict[str, Any]:
    """The JSON object in a file; errors as in `read_json`."""
    value = read_json(path, max_bytes)
    if not isinstance(value, dict):
        raise UnreadableFileError(path, f"is a JSON {_NAMES.get(type(value), 'number')}, not an object")
    return value


_NAMES = {list: "list", str: "string", bool: "boolean", type(None): "null"}


def read_model(path: Path, model: type[Model], max_bytes: int = MAX_RECORD_BYTES) -> Model:
    """The record in a file; errors as in `read_json`, and UnreadableFileError if it is another kind of record."""
    from pydantic import ValidationError  # who only prints an error imports this module too

    value = read_json(path, max_bytes)
    try:
        record = model.model_validate(value)
        refuse_unfit(record.model_dump(), not_finite=True)  # a number may be written as text
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        what = fault["msg"].removeprefix("Value error, ")
        raise UnreadableFileError(path, f"is not what belongs there ({where + ': ' if where else ''}{what})") from None
    except UnfitJSONError as error:
        raise UnreadableFileError(path, str(error)) from None
    return record
