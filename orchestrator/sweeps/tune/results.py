"""What a search found: search.json, and the configuration of the best trial as a file that `raymix run` takes."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from orchestrator.config.run import RunConfig
from orchestrator.runs.folder import is_finished, read_run
from orchestrator.searches.base import State
from orchestrator.sweeps.tune.trials import STOPPED_FILE, TRIAL_FILE, Trials
from workers.durable import write_durably


class Evaluation(BaseModel):
    """The metric at a step; None where a loss was not finite."""

    step: int
    score: float | None


class TrialRecord(BaseModel):
    """A trial in search.json."""

    name: str
    folder: Path
    changes: dict[str, Any]
    """Dotted key -> value."""
    state: State
    reason: str = ""
    """Why it failed."""
    course: list[Evaluation] = []
    """After the base model's evaluation, in order."""
    losses_nats: dict[str, float | None] = {}
    """Of each domain at the last evaluation, in nats per token."""

    @property
    def score(self) -> float | None:
        return self.course[-1].score if self.course else None


class SearchRecord(BaseModel):
    """search.json."""

    name: str
    type: str
    metric: str
    """In words; in nats per token, lower is better."""
    base_score: float | None
    """The base model's."""
    trials: list[TrialRecord]
    """In the order they began."""
    best: str | None
    """Name of the trial that best.yaml is made of: the lowest metric at the end of a finished one."""
    notes: list[str] = []
    """What else a reader should know."""

    def trial(self, name: str) -> TrialRecord:
        return next(trial for trial in self.trials if trial.name == name)


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    records: list[TrialRecord]
    runs: dict[str, RunConfig]
    """Of the records, by name."""
    notes: list[str]


def collect(folders: Iterable[Path], trials: Trials) -> list[TrialRecord]:
    """Read what these trials left."""
    records = []
    for folder in folders:
        state, reason = _state(folder)
        changes = json.loads((folder / TRIAL_FILE).read_text())["changes"]
        records.append(read_trial(trials, folder, changes, state, [folder], reason))
    return records


def read_trial(
    trials: Trials, folder: Path, changes: Mapping[str, Any], state: State, parts: Iterable[Path], reason: str = ""
) -> TrialRecord:
    """The course of a trial over its parts: the folders of its run, or of its stages, in order."""
    course: list[Evaluation] = []
    losses: dict[str, float | None] = {}
    for part in parts:
        before = course[-1].step if course else 0
        for feedback in read_run(part).feedback:
            if feedback.step > 0:  # the evaluation before tells nothing of the changes
                course.append(Evaluation(step=before + feedback.step, score=_finite(trials.score(feedback))))
                losses = {name: _finite(feedback.loss_nats(name)) for name in trials.base.domains}
    return TrialRecord(
        name=folder.name,
        folder=folder,
        changes=dict(changes),
        state=state,
        reason=reason,
        course=course,
        losses_nats=losses,
    )


def base_score(folders: Iterable[Path], trials: Trials) -> float | None:
    """The metric of the base model, which every trial measures first."""
    for folder in folders:
        run = read_run(folder)
        if run.feedback and run.feedback[0].step == 0:
            return _finite(trials.score(run.feedback[0]))
    return None


def best_of(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The finished trial with the lowest metric; of equal ones the first."""
    done = [record for record in records if record.state == "finished" and record.score is not None]
    return min(done, key=lambda record: record.score or 0.0, default=None)


def write_best(path: Path, run: RunConfig, about: str) -> None:
    content = yaml.safe_dump(run.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)
    write_durably(path, f"# {about}\n{content}".encode())


def _state(folder: Path) -> tuple[State, str]:
    if is_finished(folder):
        return "finished", ""
    if (folder / STOPPED_FILE).exists():
        return "ended early", ""
    if (failure := folder / "failure.json").exists():
        return "failed", json.loads(failure.read_text())["message"]
    return "unfinished", ""


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
