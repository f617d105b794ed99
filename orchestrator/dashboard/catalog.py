"""The runs below a folder, each summarised in a line from a few small reads.

A name is a path below that folder. Names come from browsers, so none may lead out of it, by `..`, a link or otherwise.
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from orchestrator.dashboard.states import FileKey, State, lock_holders, run_state
from orchestrator.runs.folder import REFERENCE_PROGRESS_FILE, is_finished, read_summary
from orchestrator.runs.step_table import StepTable
from orchestrator.views.format import format_value, short
from orchestrator.views.summary import HARMFUL, in_a_word
from workers.contracts import DomainFeedback
from workers.validation.domain_losses import mean_loss

ROOT = "."  # the name of the catalog's own folder, if that is a run
MAX_DEPTH = 6
TAIL_BYTES = 1 << 16
_NO_RUNS_INSIDE = frozenset(
    {"weights", "feedback", "checkpoints", "model", "best", "signals", "requests", "token-stores"}
)


class UnknownRunError(LookupError):
    """No run has this name."""


@dataclass(frozen=True)
class Glance:
    name: str
    title: str
    mixing: str
    state: State
    step: int
    total_steps: int | None
    mean_loss_nats: float
    base_loss_nats: float
    tokens_per_second: float
    seconds_per_step: float
    begun_at: float
    written_at: float
    tries: str
    """Settings that a search gave to the run."""
    verdict: str
    """The verdict in a word, if it is harmful; else empty."""

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
        self._is_run: dict[Path, tuple[int, bool]] = {}
        self._glances: dict[str, tuple[tuple[float, ...], Glance]] = {}

    def folder(self, name: str) -> Path:
        """The folder of a run; "." is the catalog's own. UnknownRunError if there is no such run below that folder."""
        path = PurePosixPath(name)
        if not name or "\0" in name or path.is_absolute() or ".." in path.parts:
            raise UnknownRunError(f"no run {name!r}")
        try:
            folder = (self.root / path).resolve()
        except (OSError, RuntimeError, ValueError):  # a cycle of links, or an impossible file name
            raise UnknownRunError(f"no run {name!r}") from None
        if not folder.is_relative_to(self.root) or not self._holds_run(folder):
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
                begun[name] = (self.root / name / "config.json").stat().st_mtime
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
        except OSError:
            return
        if any(entry.name == "config.json" for entry in entries) and self._holds_run(folder):
            yield folder
        for entry in entries:
            is_hidden = entry.name.startswith(".") or entry.name in _NO_RUNS_INSIDE
            if depth and not is_hidden and entry.is_dir(follow_symlinks=False):
                yield from self._walk(Path(entry.path), depth - 1)

    def _holds_run(self, folder: Path) -> bool:
        """Whether config.json is that of a run: a model folder has one too."""
        path = folder / "config.json"
        try:
            mark = path.stat().st_mtime_ns
            known = self._is_run.get(folder)
            if known is None or known[0] != mark:
                config = json.loads(path.read_bytes())
                is_run = isinstance(config, dict) and isinstance(config.get("domains"), dict) and "mixing" in config
                known = self._is_run[folder] = (mark, is_run)
        except (OSError, ValueError, RecursionError):
            return False
        return known[1]

    def _glance(self, name: str, holders: dict[FileKey, int]) -> Glance | None:
        folder = self.root / name
        try:
            written_at = last_written(folder)
            mark = (written_at, float(is_finished(folder)))
            known = self._glances.get(name)
            if known is None or known[0] != mark:
                known = self._glances[name] = (mark, _look(name, folder, written_at))
        except (OSError, ValueError):  # just deleted or rewritten
            return None
        glance = known[1]
        return replace(glance, state=run_state(folder, holders, glance.step > 0, written_at, glance.seconds_per_step))


def last_written(folder: Path) -> float:
    """When a running run last wrote one of its files, in seconds since the epoch."""
    times = [(folder / "config.json").stat().st_mtime]
    for part in ("metrics.jsonl", "feedback", "weights", "events.jsonl", "summary.json", REFERENCE_PROGRESS_FILE):
        with suppress(FileNotFoundError):
            times.append((folder / part).stat().st_mtime)
    return max(times)


def _look(name: str, folder: Path, written_at: float) -> Glance:
    config = json.loads((folder / "config.json").read_bytes())
    domains = list(config["domains"])
    steps = _tail(folder / "metrics.jsonl")
    base, latest = _mean_loss(folder, domains, is_last=False), _mean_loss(folder, domains, is_last=True)
    training, mixing = config.get("training"), config["mixing"]
    summary = read_summary(folder)
    total = training.get("max_steps") if isinstance(training, dict) else None
    return Glance(
        name=name,
        title=str(config.get("name") or folder.name),
        mixing=str(mixing.get("type", "-")) if isinstance(mixing, dict) else "-",
        state="stopped",
        step=summary.steps if summary else steps.last_step,
        total_steps=summary.steps if summary else total if isinstance(total, int) else None,
        mean_loss_nats=latest,
        base_loss_nats=base,
        tokens_per_second=summary.tokens_per_second if summary else steps.recent_tokens_per_second(),
        seconds_per_step=steps.recent_seconds_per_step(),
        begun_at=(folder / "config.json").stat().st_mtime,
        written_at=written_at,
        tries=_tries(folder),
        verdict=in_a_word(summary.verdict) if summary and summary.verdict in HARMFUL else "",
    )


def _tries(folder: Path) -> str:
    """The settings that a search gave to this run, by the last part of their keys."""
    try:
        changes = json.loads((folder / "trial.json").read_bytes())["changes"]
        return ", ".join(f"{short(key)} {format_value(value)}" for key, value in changes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not a run of a search, or an unknown format
        return ""


def _tail(path: Path) -> StepTable:
    """The last lines of a file of steps."""
    table = StepTable()
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return table
    for line in lines[:-1]:  # the first may be half a line, which is not JSON
        with suppress(ValueError, TypeError, KeyError, AttributeError):
            table.append(json.loads(line))
    return table


def _mean_loss(folder: Path, domains: list[str], is_last: bool) -> float:
    """Mean held-out loss over the domains, of the base model or at the last evaluation; NaN without one."""
    try:
        names = [path.name for path in (folder / "feedback").iterdir() if path.match("[0-9]*.json")]
        name = max(names, default="") if is_last else "00000000.json"
        feedback = DomainFeedback.model_validate_json((folder / "feedback" / name).read_bytes())
    except (OSError, ValidationError):
        return math.nan
    return mean_loss(map(feedback.loss_nats, domains))
