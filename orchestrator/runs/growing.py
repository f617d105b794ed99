"""Files that grow while they are read: lines appended to one, and a folder with a file for each record.

What cannot be used is passed over and said in a reader's `problem`; the next look tries again.
"""

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from workers.bounded import (
    MAX_RECORD_BYTES,
    UnfitJSONError,
    UnreadableFileError,
    open_regular,
    parse_json,
    read_model,
)

BLOCK_BYTES = 1 << 24
MAX_LINE_BYTES = 1 << 20
MAX_LINES_BYTES = 1 << 32
"""Of a file of lines: more than a million steps of hundreds of domains."""
MAX_BAD_LINES = 10_000
MAX_FILES = 100_000
MAX_ALL_BYTES = 1 << 30
"""Of the files in a folder together."""
Model = TypeVar("Model", bound=BaseModel)
Mark = tuple[int, int, int]
"""Changes with the file: when its content, and when its rights were changed, in nanoseconds, and its size in bytes."""


def mark_of(status: os.stat_result) -> Mark:
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size


def reason_of(error: OSError | ValueError) -> str:
    """Why a file cannot be used, without its path."""
    if isinstance(error, UnreadableFileError):
        return error.reason
    return (isinstance(error, OSError) and error.strerror) or str(error)


class LineTail:
    """Complete lines appended to a file since it was last read."""

    def __init__(self, path: Path, on_restart: Callable[[], None] | None = None) -> None:
        self.path = path
        self.problem = ""
        """What is in the file that no line of ours has, or why no more of it is read."""
        self.num_unreadable = 0
        self._is_given_up = False
        self._offset = 0
        self._inode: int | None = None
        self._on_restart = on_restart

    def new_blocks(self) -> Iterator[bytes]:
        """Complete lines, many at a time; OSError or UnreadableFileError if the file cannot be read."""
        try:
            file = open_regular(self.path, MAX_LINES_BYTES)
        except FileNotFoundError:
            return
        with file:
            self._restart_if_rewritten(os.fstat(file.fileno()))
            file.seek(self._offset)
            while not self._is_given_up and (block := file.read(BLOCK_BYTES)):
                block += file.readline(MAX_LINE_BYTES)
                whole = block[: block.rfind(b"\n") + 1]
                self._offset += len(whole)
                if whole:
                    yield whole
                if len(block) - len(whole) >= MAX_LINE_BYTES:
                    self.give_up(f"has a line of more than {MAX_LINE_BYTES:,} bytes after byte {self._offset:,}")
                if self.num_unreadable > MAX_BAD_LINES:
                    self.give_up(f"has more than {MAX_BAD_LINES:,} lines that are no records")
                if len(whole) < len(block):  # the last line is not complete yet
                    return

    def give_up(self, reason: str) -> None:
        """Read no more of the file as it is."""
        self.problem, self._is_given_up = reason, True

    def new_records(self) -> Iterator[dict[str, Any]]:
        for block in self.new_blocks():
            yield from self.records(block)

    def records(self, block: bytes) -> Iterator[dict[str, Any]]:
        start = 0
        while (end := block.find(b"\n", start)) >= 0 and self.num_unreadable <= MAX_BAD_LINES:
            record = None
            try:
                record = parse_line(block[start:end])
            except UnfitJSONError as error:
                self.problem = f"a line {error}"
            if record is None:
                self.num_unreadable += 1
            else:
                yield record
            start = end + 1

    def _restart_if_rewritten(self, stat: os.stat_result) -> None:
        """A resumed run may truncate or replace the file."""
        if self._offset and (stat.st_size < self._offset or stat.st_ino != self._inode):
            self._offset = self.num_unreadable = 0
            self.problem, self._is_given_up = "", False
            if self._on_restart is not None:
                self._on_restart()
        self._inode = stat.st_ino


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The JSON object in a line; None if it is not one; UnfitJSONError if it is one that cannot be used.

    A measured number may be NaN or infinite.
    """
    try:
        record = parse_json(line, not_finite=True)
    except UnfitJSONError:
        raise
    except ValueError:  # a killed writer left half a line, to which the next one was appended
        return None
    return record if isinstance(record, dict) else None


class ModelFolder(Generic[Model]):
    """The files `<number>.json` of a folder, in order of their number."""

    def __init__(self, path: Path, model: type[Model]) -> None:
        self.path = path
        self.model = model
        self.problems: dict[str, str] = {}
        """Name of a file -> why it cannot be used; the folder's own name is the empty one."""
        self._seen: dict[str, Mark] = {}
        self._models: dict[int, Model] = {}

    def refresh(self) -> bool:
        """Read new and changed files; True if there were any, or other problems."""
        before, self.problems = self.problems, {}
        changed, num_bytes = False, 0
        try:
            with os.scandir(self.path) as entries:
                names = [entry.name for entry in islice(entries, MAX_FILES + 1)]
        except FileNotFoundError:
            return False
        except OSError as error:
            self.problems[""] = reason_of(error)
            return self.problems != before
        if len(names) > MAX_FILES:
            self.problems[""] = f"has more than {MAX_FILES:,} files; the others are not read"
        for name in names:
            number = name.removesuffix(".json")
            if number == name or not number.isdecimal():
                continue
            try:
                status = (self.path / name).stat()
                num_bytes += status.st_size if status.st_size <= MAX_RECORD_BYTES else 0
                if num_bytes > MAX_ALL_BYTES:
                    self.problems[""] = f"has more than {MAX_ALL_BYTES:,} bytes; the files after these are not read"
                    break
                if self._seen.get(name) == mark_of(status):
                    self.problems |= {name: before[name]} if name in before else {}
                    continue
                self._seen[name] = mark_of(status)
                self._models[int(number)] = read_model(self.path / name, self.model)
                changed = True
            except FileNotFoundError:  # just replaced
                self._seen.pop(name, None)
            except (OSError, ValueError) as error:
                self.problems[name] = reason_of(error)
                if isinstance(error, OSError):  # it may pass
                    self._seen.pop(name, None)
        return changed or self.problems != before

    def models(self) -> list[Model]:
        return [self._models[number] for number in sorted(self._models)]
