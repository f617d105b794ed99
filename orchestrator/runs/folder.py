"""A run's public files, read while they are being written.

    config.json, data.json, summary.json   read once each, as soon as they exist
    tasks.json                        read when it changes: it appears after the run has ended, and grows
    reference-progress.json           read when it changes: it is removed when the reference losses are known
    weights/*.json, feedback/*.json   one small file per version or evaluation; only new or changed files are read
    *.jsonl                           only appended lines are read, the last one once its newline is there

`RunFolder.refresh` reads what is new. Terminal, report and dashboard show a run by nothing else.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from orchestrator.runs.benchmark_record import TASK_FILE, TaskFile, TaskScores
from orchestrator.runs.records import DATA_FILE, DataRecord, Event, ReferenceProgress, RunSummary
from orchestrator.runs.step_table import StepTable
from workers.clock import format_time
from workers.contracts import DomainFeedback, DomainWeights

REFERENCE_PROGRESS_FILE = "reference-progress.json"
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


def is_finished(folder: Path) -> bool:
    """Whether the run, or plan of stages, in this folder has finished; summary.json is written last."""
    return (folder / "summary.json").exists()


def read_run(folder: Path) -> "RunFolder":
    """A run's files as they are now."""
    run = RunFolder(folder)
    run.refresh()
    return run


def read_summary(folder: Path) -> RunSummary | None:
    """A run's summary.json alone; None if it is missing or unreadable."""
    try:
        return load_model(folder / "summary.json", RunSummary)
    except OSError:
        return None


class RunFolder:
    """One run as recorded in its files. Only `refresh` accesses the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: dict[str, Any] = {}
        self.summary: RunSummary | None = None
        self.data: DataRecord | None = None
        self.metrics = StepTable()
        self.mixing = StepTable()
        self.events: list[Event] = []
        self.tasks: list[TaskScores] = []
        self.reference: ReferenceProgress | None = None
        self._marks: dict[str, tuple[int, int] | None] = {}
        self._weights = ModelFolder(path / "weights", DomainWeights)
        self._feedback = ModelFolder(path / "feedback", DomainFeedback)
        self._metrics_tail = LineTail(path / "metrics.jsonl")
        self._mixing_tail = LineTail(path / "mixing.jsonl")
        self._events_tail = LineTail(path / "events.jsonl", on_restart=self.events.clear)

    def refresh(self) -> bool:
        """Read what was written since the last call; True if anything was."""
        changed = [self._refresh_fixed(), self._refresh_changing(), self._weights.refresh(), self._feedback.refresh()]
        changed += [self._extend(self._metrics_tail, self.metrics), self._extend(self._mixing_tail, self.mixing)]
        num_before = len(self.events)
        for record in self._events_tail.new_records():
            try:
                self.events.append(Event.model_validate(record))
            except ValidationError:
                self._events_tail.num_unreadable += 1
        return any(changed) or len(self.events) > num_before

    @property
    def weights(self) -> list[DomainWeights]:
        """Every version so far, oldest first."""
        return self._weights.models()

    @property
    def feedback(self) -> list[DomainFeedback]:
        """Every evaluation so far, in order of its step."""
        return self._feedback.models()

    @property
    def num_unreadable_lines(self) -> int:
        """Complete lines that are not valid records."""
        tails = (self._metrics_tail, self._mixing_tail, self._events_tail)
        return sum(tail.num_unreadable for tail in tails)

    @property
    def name(self) -> str:
        return str(self.config.get("name") or (self.summary and self.summary.name) or self.path.name)

    @property
    def domains(self) -> list[str]:
        """The domains in the order of the configuration, or of the first weights if that is missing."""
        if isinstance(configured := self.config.get("domains"), dict) and configured:
            return list(configured)
        weights, feedback = self.weights, self.feedback
        return list(weights[0].shares) if weights else list(feedback[0].loss_sum_nats) if feedback else []

    @property
    def total_steps(self) -> int | None:
        """Planned number of steps; None if the configuration counts epochs or tokens."""
        if self.summary is not None:
            return self.summary.steps
        return self.setting("training", "max_steps")

    def setting(self, *keys: str) -> Any:
        """A value of config.json by its path; None if it is missing."""
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def times(self) -> tuple[str | None, str | None]:
        """When the first and the last record was written, in UTC; None if the files have no times."""
        noted = [event.time for event in self.events] + [feedback.time for feedback in self.feedback]
        stepped = self.metrics.column("time")[[0, -1]].tolist() if len(self.metrics) else []
        known = [time for time in noted if time] + [format_time(at) for at in stepped if math.isfinite(at)]
        return (min(known), max(known)) if known else (None, None)

    def weights_at(self, step: int) -> DomainWeights | None:
        """The version that applies to `step`."""
        holding = [weights for weights in self.weights if weights.effective_step <= max(step, 1)]
        return holding[-1] if holding else None

    def _refresh_fixed(self) -> bool:
        """Read the files that never change, if they have appeared."""
        before = self.config, self.summary, self.data
        with suppress(FileNotFoundError):
            self.config = self.config or parse_line((self.path / "config.json").read_bytes()) or {}
        self.summary = self.summary or load_model(self.path / "summary.json", RunSummary)
        self.data = self.data or load_model(self.path / DATA_FILE, DataRecord)
        return (self.config, self.summary, self.data) != before

    def _refresh_changing(self) -> bool:
        if has_new_tasks := self._has_changed(TASK_FILE):
            found = load_model(self.path / TASK_FILE, TaskFile)
            self.tasks = found.tasks if found else []
        if has_new_reference := self._has_changed(REFERENCE_PROGRESS_FILE):
            self.reference = load_model(self.path / REFERENCE_PROGRESS_FILE, ReferenceProgress)
        return has_new_tasks or has_new_reference

    def _has_changed(self, name: str) -> bool:
        """Whether a file has changed since it was last read; a file that is still missing has not."""
        try:
            stat = (self.path / name).stat()
            mark = (stat.st_mtime_ns, stat.st_size)
        except FileNotFoundError:
            mark = None
        before, self._marks[name] = self._marks.get(name), mark
        return mark != before

    @staticmethod
    def _extend(tail: LineTail, table: StepTable) -> bool:
        num_before, unreadable_before = len(table), tail.num_unreadable
        for block in tail.new_blocks():
            if table.extend(block):
                continue
            for record in tail.records(block):
                try:
                    table.append(record)
                except (KeyError, TypeError, ValueError):
                    tail.num_unreadable += 1
        return len(table) != num_before or tail.num_unreadable != unreadable_before
