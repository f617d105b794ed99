"""The runs below a folder, each summarised in a line from a few small reads.

A name is a path below that folder. Names come from browsers, so none may lead out of it, by `..`, a link or otherwise.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from orchestrator.dashboard.states import FileKey, State, lock_holders, run_state
from orchestrator.runs.benchmark_record import TASK_FILE
from orchestrator.runs.folder import CONFIG_FILE, ISOLATION_FILE, REFERENCE_PROGRESS_FILE, SUMMARY_FILE
from orchestrator.runs.growing import MAX_LINES_BYTES, Mark, mark_of, parse_line, reason_of
from orchestrator.runs.lock import LOCK_FILE
from orchestrator.runs.records import DATA_FILE, RunSummary
from orchestrator.runs.step_table import StepTable
from orchestrator.views.format import format_value, short
from orchestrator.views.summary import HARMFUL, in_a_word
from workers.bounded import (
    MAX_RECORD_BYTES,
    UnfitJSONError,
    UnreadableFileError,
    check_regular,
    open_regular,
    parse_json,
    read_bytes,
    read_model,
    read_object,
)
from workers.contracts import DomainFeedback
from workers.validation.domain_losses import mean_loss

ROOT = "."  # the name of the catalog's own folder, if that is a run
MAX_DEPTH = 6
TAIL_BYTES = 1 << 16
RETRY_SECONDS = 60.0  # until a run with a problem is read again though its files seem the same
_WRITTEN = (
    *(CONFIG_FILE, "metrics.jsonl", "feedback", "weights", "events.jsonl", SUMMARY_FILE),
    REFERENCE_PROGRESS_FILE,
)
_SHOWN_LATER = dict.fromkeys((DATA_FILE, TASK_FILE, ISOLATION_FILE), MAX_RECORD_BYTES) | dict.fromkeys(
    ("events.jsonl", "mixing.jsonl"), MAX_LINES_BYTES
)
_MARKS = ("metrics.jsonl", "events.jsonl", "weights", "feedback", LOCK_FILE)
Value = TypeVar("Value")
_NO_RUNS_INSIDE = frozenset(
    {"weights", "feedback", "checkpoints", "model", "best", "signals", "requests", "token-stores"}
)


class UnknownRunError(LookupError):
    """No run has this name."""


@dataclass(frozen=True)
class Glance:
    name: str
    title: str
    mixing: str = "-"
    state: State = "stopped"
    step: int = 0
    total_steps: int | None = None
    mean_loss_nats: float = math.nan
    base_loss_nats: float = math.nan
    tokens_per_second: float = math.nan
    seconds_per_step: float = math.nan
    begun_at: float = 0.0
    written_at: float = 0.0
    tries: str = ""
    """Settings that a search gave to the run."""
    verdict: str = ""
    """The verdict in a word, if it is harmful; else empty."""
    problem: str = ""
    """Which of its files cannot be used, and why."""

    @property
    def group(self) -> str:
        """Its parent folder, relative to the catalog's."""
        parent = str(PurePosixPath(self.name).parent)
        return "" if parent == "." else parent

    @property
    def top(self) -> str:
        """The entry of the catalog's folder that is or contains the run."""
        return self.name.split("/")[0]


class Catalog:
    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._is_run: dict[Path, tuple[Mark, bool]] = {}
        self._glances: dict[str, tuple[tuple[Mark | None, ...], Glance, float]] = {}

    def folder(self, name: str) -> Path:
        """The folder of a run; "." is the catalog's own. UnknownRunError if there is no such run below that folder."""
        path = PurePosixPath(name)
        if not name or "\0" in name or path.is_absolute() or ".." in path.parts:
            raise UnknownRunError(f"no run {name!r}")
        try:
            folder = (self.root / path).resolve()
            is_inside = folder.is_relative_to(self.root) and folder.is_dir()
        except (OSError, RuntimeError, ValueError):  # a cycle of links, or an impossible file name
            raise UnknownRunError(f"no run {name!r}") from None
        if not is_inside or not self._holds_run(folder):
            raise UnknownRunError(f"no run {name!r} in {self.root}")
        return folder

    def names(self) -> list[str]:
        """All runs whose name fits into an address, in no particular order."""
        names = (str(folder.relative_to(self.root)) for folder in self._walk(self.root, MAX_DEPTH))
        return [name for name in names if name.isprintable()]

    def newest(self, count: int) -> list[str]:
        """The `count` runs that started last, newest first."""
        begun: dict[str, float] = {}
        for name in self.names():
            with suppress(OSError):
                begun[name] = _begun_at(self.root / name)
        return sorted(begun, key=lambda name: begun[name], reverse=True)[:count]

    def glances(self) -> list[Glance]:
        """A line for each run, newest first; runs of a group stay together."""
        holders = lock_holders()
        glances = [glance for name in self.names() if (glance := self._glance(name, holders)) is not None]
        newest: dict[str, float] = {}
        for glance in glances:
            newest[glance.top] = max(newest.get(glance.top, 0.0), glance.begun_at)

        def order(glance: Glance) -> tuple[Any, ...]:
            within = (glance.name != glance.top, glance.group, -glance.begun_at, glance.name)
            return -newest[glance.top], glance.top, *within

        return sorted(glances, key=order)

    def _walk(self, folder: Path, depth: int) -> Iterator[Path]:
        try:
            entries = list(os.scandir(folder))
        except PermissionError:  # a run, as far as one can tell
            yield folder
            return
        except OSError:
            return
        if any(entry.name == CONFIG_FILE for entry in entries) and self._holds_run(folder):
            yield folder
        for entry in entries:
            is_hidden = entry.name.startswith(".") or entry.name in _NO_RUNS_INSIDE
            if depth and not is_hidden and entry.is_dir(follow_symlinks=False):
                yield from self._walk(Path(entry.path), depth - 1)

    def _holds_run(self, folder: Path) -> bool:
        """Whether config.json is that of a run, or may be as far as one can tell. A model folder has one too."""
        path = folder / CONFIG_FILE
        try:
            mark = mark_of(path.stat())
            known = self._is_run.get(folder)
            if known is None or known[0] != mark:
                known = self._is_run[folder] = (mark, _is_of_run(read_bytes(path), folder))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except (OSError, UnreadableFileError):  # a model has a file there, or nothing
            return True
        return known[1]

    def _glance(self, name: str, holders: dict[FileKey, int]) -> Glance | None:
        folder, now = self.root / name, time.monotonic()
        try:
            written_at, mark = last_written(folder), _marks(folder)
            known = self._glances.get(name)
            if known is None or known[0] != mark or (known[1].problem and now > known[2]):
                known = self._glances[name] = (mark, _look(name, folder, written_at), now + RETRY_SECONDS)
            glance = known[1]
            state = run_state(folder, holders, glance.step > 0, written_at, glance.seconds_per_step)
        except FileNotFoundError:  # just deleted
            return None
        except OSError as error:
            return Glance(name=name, title=folder.name, state="unreadable", problem=reason_of(error))
        return replace(glance, state="unreadable" if glance.problem else state)


def _is_of_run(config: bytes, folder: Path) -> bool:
    with suppress(ValueError):
        if _names_domains(parse_json(config)):
            return True
    return any(os.path.lexists(folder / name) for name in _MARKS)  # half a file, or worse, beside a run's others


def _names_domains(config: Any) -> bool:
    return isinstance(config, dict) and isinstance(config.get("domains"), dict) and "mixing" in config


def last_written(folder: Path) -> float:
    """When a running run last wrote one of its files, in seconds since the epoch; FileNotFoundError without a run."""
    times = [folder.stat().st_mtime]
    for part in _WRITTEN:
        with suppress(OSError):
            times.append((folder / part).stat().st_mtime)
    return max(times[1:], default=times[0])


def _marks(folder: Path) -> tuple[Mark | None, ...]:
    """Change with what a glance shows."""
    marks: list[Mark | None] = []
    for part in _WRITTEN:
        try:
            marks.append(mark_of((folder / part).stat()))
        except OSError:
            marks.append(None)
    return tuple(marks)


def _look(name: str, folder: Path, written_at: float) -> Glance:
    problems: list[str] = []

    def read(part: str, reader: Callable[[Path], Value]) -> Value | None:
        try:
            return reader(folder / part)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            problems.append(f"{part}: {reason_of(error)}")
            return None

    if not _names_domains(config := read(CONFIG_FILE, read_object) or {}) and not problems:
        problems.append(f"{CONFIG_FILE}: is not that of a run: no object `domains`, or no `mixing`")
    domains, training, mixing = (
        found if isinstance(found := config.get(key), dict) else {} for key in ("domains", "training", "mixing")
    )
    steps, summary = StepTable(), read(SUMMARY_FILE, partial(read_model, model=RunSummary))
    read("metrics.jsonl", partial(_read_tail, steps))
    read("weights", _numbered)
    numbers = read("feedback", _numbered) or []
    base, latest = (
        read(f"feedback/{number}", partial(read_model, model=DomainFeedback)) if number else None
        for number in ("00000000.json" if numbers else "", max(numbers, default=""))
    )
    for part, max_bytes in _SHOWN_LATER.items():
        read(part, partial(check_regular, max_bytes=max_bytes))
    total = training.get("max_steps")
    return Glance(
        name=name,
        title=str(config.get("name") or folder.name),
        mixing=str(mixing.get("type", "-")),
        step=summary.steps if summary else steps.last_step,
        total_steps=summary.steps if summary else total if isinstance(total, int) else None,
        mean_loss_nats=mean_loss(map(latest.loss_nats, domains)) if latest else math.nan,
        base_loss_nats=mean_loss(map(base.loss_nats, domains)) if base else math.nan,
        tokens_per_second=summary.tokens_per_second if summary else steps.recent_tokens_per_second(),
        seconds_per_step=steps.recent_seconds_per_step(),
        begun_at=_begun_at(folder),
        written_at=written_at,
        tries=_tries(folder),
        verdict=in_a_word(summary.verdict) if summary and summary.verdict in HARMFUL else "",
        problem="; ".join(problems),
    )


def _begun_at(folder: Path) -> float:
    try:
        return (folder / CONFIG_FILE).stat().st_mtime
    except OSError:
        return folder.stat().st_mtime


def _tries(folder: Path) -> str:
    """The settings that a search gave to this run, by the last part of their keys."""
    try:
        changes = read_object(folder / "trial.json")["changes"]
        return ", ".join(f"{short(key)} {format_value(value)}" for key, value in changes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not a run of a search, or an unknown format
        return ""


def _read_tail(table: StepTable, path: Path) -> None:
    """Add the last lines of a file of steps; UnfitJSONError, after the others, for one that no run has written."""
    with open_regular(path, MAX_LINES_BYTES) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        lines = file.read(TAIL_BYTES).split(b"\n")
    unfit = None
    for line in lines[:-1]:  # the first may be half a line, which is not JSON
        try:
            if (record := parse_line(line)) is not None:
                table.append(record)
        except UnfitJSONError as error:
            unfit = UnfitJSONError(f"a line {error}")
        except (ValueError, TypeError, KeyError, OverflowError):
            pass
    if unfit is not None:
        raise unfit


def _numbered(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.name[:1].isdecimal() and entry.name.endswith(".json")]
