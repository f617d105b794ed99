"""A run's public files, read while they are being written.

    config.json, data.json, summary.json   read once each, as soon as they exist
    tasks.json                        read when it changes: it appears after the run has ended, and grows
    reference-progress.json           read when it changes: it is removed when the reference losses are known
    weights/*.json, feedback/*.json   one small file per version or evaluation; only new or changed files are read
    *.jsonl                           only appended lines are read, the last one once its newline is there

`RunFolder.refresh` reads what is new. Terminal, report and dashboard show a run by nothing else.
"""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.runs.benchmark_record import FILE_NAME as TASK_FILE
from orchestrator.runs.benchmark_record import TaskFile, TaskScores
from orchestrator.runs.data_record import FILE_NAME as DATA_FILE
from orchestrator.runs.data_record import DataRecord
from orchestrator.runs.growing_files import LineTail, ModelFolder, load_model, parse_line
from orchestrator.runs.records import Event, ReferenceProgress, RunSummary
from orchestrator.runs.step_table import StepTable
from workers.clock import format_time
from workers.contracts import DomainFeedback, DomainWeights

REFERENCE_PROGRESS_FILE = "reference-progress.json"


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
        changed = [self._refresh_fixed(), self._weights.refresh(), self._feedback.refresh()]
        changed += [self._extend(self._metrics_tail, self.metrics), self._extend(self._mixing_tail, self.mixing)]
        changed += [self._refresh_tasks(), self._refresh_reference()]
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

    def _refresh_tasks(self) -> bool:
        if self._is_same(TASK_FILE):
            return False
        found = load_model(self.path / TASK_FILE, TaskFile)
        self.tasks = found.tasks if found else []
        return True

    def _refresh_reference(self) -> bool:
        if self._is_same(REFERENCE_PROGRESS_FILE):
            return False
        self.reference = load_model(self.path / REFERENCE_PROGRESS_FILE, ReferenceProgress)
        return True

    def _is_same(self, name: str) -> bool:
        """Whether a file has not changed since it was last read; a file that is still missing has not."""
        try:
            stat = (self.path / name).stat()
            mark = (stat.st_mtime_ns, stat.st_size)
        except FileNotFoundError:
            mark = None
        before, self._marks[name] = self._marks.get(name), mark
        return mark == before

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
