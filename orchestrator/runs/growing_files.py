"""Files that are read while they are being written: only new content is read."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

BLOCK_BYTES = 1 << 24
Model = TypeVar("Model", bound=BaseModel)


class LineTail:
    """Complete lines appended to a file since it was last read."""

    def __init__(self, path: Path, on_restart: Callable[[], None] | None = None) -> None:
        self.path = path
        self.num_unreadable = 0
        self._offset = 0
        self._inode: int | None = None
        self._on_restart = on_restart

    def new_blocks(self) -> Iterator[bytes]:
        """Complete lines, many at a time."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            self._restart_if_rewritten(os.fstat(file.fileno()))
            file.seek(self._offset)
            while block := file.read(BLOCK_BYTES):
                block += file.readline()
                whole = block[: block.rfind(b"\n") + 1]
                self._offset += len(whole)
                if whole:
                    yield whole
                if len(whole) < len(block):  # the last line is not complete yet
                    return

    def new_records(self) -> Iterator[dict[str, Any]]:
        for block in self.new_blocks():
            yield from self.records(block)

    def records(self, block: bytes) -> Iterator[dict[str, Any]]:
        for line in block.split(b"\n")[:-1]:
            record = parse_line(line)
            if record is None:
                self.num_unreadable += 1
            else:
                yield record

    def _restart_if_rewritten(self, stat: os.stat_result) -> None:
        """A resumed run may truncate or replace the file."""
        if self._offset and (stat.st_size < self._offset or stat.st_ino != self._inode):
            self._offset = 0
            if self._on_restart is not None:
                self._on_restart()
        self._inode = stat.st_ino


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The JSON object in a line; None if it is not one."""
    try:
        record = json.loads(line)
    except ValueError:  # a killed writer left half a line, to which the next one was appended
        return None
    return record if isinstance(record, dict) else None


class ModelFolder(Generic[Model]):
    """The files `<number>.json` of a folder, in order of their number."""

    def __init__(self, path: Path, model: type[Model]) -> None:
        self.path = path
        self.model = model
        self._seen: dict[str, tuple[int, int]] = {}
        self._models: dict[int, Model] = {}

    def refresh(self) -> bool:
        """Read new and changed files; True if there were any."""
        try:
            entries = [(e.name, e.stat()) for e in os.scandir(self.path) if e.name.endswith(".json")]
        except FileNotFoundError:
            return False
        changed = False
        for name, stat in entries:
            mark = (stat.st_mtime_ns, stat.st_size)
            number = name.removesuffix(".json")
            if self._seen.get(name) == mark or not number.isdecimal():
                continue
            self._seen[name] = mark
            model = load_model(self.path / name, self.model)
            if model is not None:
                self._models[int(number)] = model
                changed = True
        return changed

    def models(self) -> list[Model]:
        return [self._models[number] for number in sorted(self._models)]


def load_model(path: Path, model: type[Model]) -> Model | None:
    try:
        return model.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):  # not there yet, or incomplete: the next refresh reads it
        return None
