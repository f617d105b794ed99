"""What a search found: search.json, and the configuration of the best trial as a file that `raymix run` takes."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel

from orchestrator.config.run import RunConfig
from orchestrator.runs.folder import is_finished, read_run
from orchestrator.sweeps.tune.trial import STOPPED_FILE, TRIAL_FILE, Trials
from workers.durable import write_durably

State = Literal["finished", "ended early", "failed", "unfinished"]


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
    course: list[Evaluation]
    """After the base model's evaluation, in order."""
    losses_nats: dict[str, float | None]
    """Of each domain at the last evaluation, in nats per token."""

    @property
    def score(self) -> float | None:
        """The metric at the last evaluation."""
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
        """A trial by its name."""
        return next(trial for trial in self.trials if trial.name == name)


def collect(folders: Iterable[Path], trials: Trials) -> list[TrialRecord]:
    """Read what these trials left."""
    return [_read(folder, trials) for folder in folders]


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


def write_best(path: Path, run: RunConfig, about: Sequence[str]) -> None:
    """The run as a configuration file, with a comment on top."""
    content = yaml.safe_dump(run.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)
    comment = "".join(f"# {line}\n" for line in about)
    write_durably(path, (comment + content).encode())


def _read(folder: Path, trials: Trials) -> TrialRecord:
    run = read_run(folder)
    state, reason = _state(folder)
    trained = [feedback for feedback in run.feedback if feedback.step > 0]
    last = trained[-1] if trained else None
    return TrialRecord(
        name=folder.name,
        folder=folder,
        changes=json.loads((folder / TRIAL_FILE).read_text())["changes"],
        state=state,
        reason=reason,
        course=[Evaluation(step=each.step, score=_finite(trials.score(each))) for each in trained],
        losses_nats={name: _finite(last.loss_nats(name)) for name in trials.base.domains} if last else {},
    )


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
