"""A run's public files, read while they are being written.

    config.json, data.json, isolation.json, summary.json   read once each, as soon as they exist
    tasks.json                        read when it changes: it appears after the run has ended, and grows
    reference-progress.json           read when it changes: it is removed when the reference losses are known
    weights/*.json, feedback/*.json   one small file per version or evaluation; only new or changed files are read
    *.jsonl                           only appended lines are read, the last one once its newline is there

`RunFolder.refresh` reads what is new. Terminal, report and dashboard show a run by nothing else. Whatever is in the
place of a file, it ends in bounded time and memory; a file that cannot be used is named in `problems`.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from orchestrator.runs.benchmark_record import TASK_FILE, TaskFile, TaskScores
from orchestrator.runs.growing import LineTail, Mark, ModelFolder, mark_of, reason_of
from orchestrator.runs.records import DATA_FILE, DataRecord, Event, IsolationRecord, ReferenceProgress, RunSummary
from orchestrator.runs.step_table import StepTable, TableFullError
from workers.bounded import UnreadableFileError, read_model, read_object
from workers.clock import format_time
from workers.contracts import DomainFeedback, DomainWeights

REFERENCE_PROGRESS_FILE = "reference-progress.json"
CONFIG_FILE = "config.json"
ISOLATION_FILE = "isolation.json"
SUMMARY_FILE = "summary.json"
MAX_EVENTS = 100_000
_NUMBERS = (CONFIG_FILE, "metrics.jsonl", "weights", "feedback")
Value = TypeVar("Value")


def is_finished(folder: Path) -> bool:
    """Whether the run, or plan of stages, in this folder has finished; summary.json is written last."""
    return (folder / "summary.json").exists()


def read_run(folder: Path) -> "RunFolder":
    """A run's files as they are now; ValueError if one cannot be used that its numbers are computed from."""
    run = RunFolder(folder)
    run.refresh()
    for name, reason in run.problems.items():
        if name.partition("/")[0] in _NUMBERS:
            raise UnreadableFileError(folder / name, reason)
    return run


def read_summary(folder: Path) -> RunSummary | None:
    """A run's summary.json alone; None if it is missing or unreadable."""
    try:
        return read_model(folder / SUMMARY_FILE, RunSummary)
    except (OSError, ValueError):
        return None


class RunFolder:
    """One run as recorded in its files. Only `refresh` accesses the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: dict[str, Any] = {}
        self.summary: RunSummary | None = None
        self.data: DataRecord | None = None
        self.isolation: IsolationRecord | None = None
        self.metrics = StepTable()
        self.mixing = StepTable()
        self.events: list[Event] = []
        self.tasks: list[TaskScores] = []
        self.reference: ReferenceProgress | None = None
        self._bad_files: dict[str, str] = {}
        self._marks: dict[str, Mark | None] = {}
        self._weights = ModelFolder(path / "weights", DomainWeights)
        self._feedback = ModelFolder(path / "feedback", DomainFeedback)
        self._metrics_tail = LineTail(path / "metrics.jsonl")
        self._mixing_tail = LineTail(path / "mixing.jsonl")
        self._events_tail = LineTail(path / "events.jsonl", on_restart=self.events.clear)

    def refresh(self) -> bool:
        """Read what was written since the last call; True if anything was."""
        before = self._bad_files.copy()
        changed = [self._refresh_fixed(), self._refresh_changing(), self._weights.refresh(), self._feedback.refresh()]
        changed += [self._extend(self._metrics_tail, self.metrics), self._extend(self._mixing_tail, self.mixing)]
        return any([*changed, self._extend_events(), before != self._bad_files])

    @property
    def problems(self) -> dict[str, str]:
        """The files that cannot be used, relative to the folder, and why."""
        found = {tail.path.name: tail.problem for tail in self._tails if tail.problem} | self._bad_files
        for part, problems in (("weights", self._weights.problems), ("feedback", self._feedback.problems)):
            found |= {f"{part}/{name}".rstrip("/"): reason for name, reason in problems.items()}
        return found

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
        return sum(tail.num_unreadable for tail in self._tails)

    @property
    def _tails(self) -> tuple[LineTail, ...]:
        return self._metrics_tail, self._mixing_tail, self._events_tail

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
        before = self.config, self.summary, self.data, self.isolation
        if not self.config and self._has_changed(CONFIG_FILE):
            self.config = self._read(CONFIG_FILE, read_object) or {}
        if self.summary is None and self._has_changed(SUMMARY_FILE):
            self.summary = self._read(SUMMARY_FILE, partial(read_model, model=RunSummary))
        if self.data is None and self._has_changed(DATA_FILE):
            self.data = self._read(DATA_FILE, partial(read_model, model=DataRecord))
        if self.isolation is None and self._has_changed(ISOLATION_FILE):
            self.isolation = self._read(ISOLATION_FILE, partial(read_model, model=IsolationRecord))
        return (self.config, self.summary, self.data, self.isolation) != before

    def _refresh_changing(self) -> bool:
        if has_new_tasks := self._has_changed(TASK_FILE):
            found = self._read(TASK_FILE, partial(read_model, model=TaskFile))
            self.tasks = found.tasks if found else []
        if has_new_reference := self._has_changed(REFERENCE_PROGRESS_FILE):
            self.reference = self._read(REFERENCE_PROGRESS_FILE, partial(read_model, model=ReferenceProgress))
        return has_new_tasks or has_new_reference

    def _has_changed(self, name: str) -> bool:
        """Whether a small file has changed since it was last read; a file that is still missing has not."""
        mark: Mark | None = None
        try:
            mark = mark_of((self.path / name).stat())
        except FileNotFoundError:
            self._bad_files.pop(name, None)
        except OSError as error:
            self._bad_files[name] = reason_of(error)
        before, self._marks[name] = self._marks.get(name), mark
        return mark != before

    def _read(self, name: str, read: Callable[[Path], Value]) -> Value | None:
        """The content of a small file; None if it is missing or cannot be used."""
        with self._noting(name):
            return read(self.path / name)
        return None

    @contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        """Note why a file cannot be used instead of raising it."""
        self._bad_files.pop(name, None)
        try:
            yield
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            self._bad_files[name] = reason_of(error)
            if isinstance(error, OSError):  # it may pass: the next look tries again
                self._marks.pop(name, None)

    def _extend_events(self) -> bool:
        tail, num_before = self._events_tail, (len(self.events), self._events_tail.num_unreadable)
        with self._noting(tail.path.name):
            for record in tail.new_records():
                try:
                    self.events.append(Event.model_validate(record))
                except ValidationError:
                    tail.num_unreadable += 1
                if len(self.events) >= MAX_EVENTS:
                    tail.give_up(f"has {MAX_EVENTS:,} events or more; later ones are not read")
                    break
        return (len(self.events), tail.num_unreadable) != num_before

    def _extend(self, tail: LineTail, table: StepTable) -> bool:
        before = len(table), tail.num_unreadable
        with self._noting(tail.path.name):
            for block in tail.new_blocks():
                try:
                    if not table.extend(block):
                        _append_all(tail, block, table)
                except TableFullError as error:
                    tail.give_up(str(error))
        return (len(table), tail.num_unreadable) != before


def _append_all(tail: LineTail, block: bytes, table: StepTable) -> None:
    for record in tail.records(block):
        try:
            table.append(record)
        except (KeyError, TypeError, ValueError, OverflowError):
            tail.num_unreadable += 1
