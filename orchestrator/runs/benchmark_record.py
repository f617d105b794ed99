"""tasks.json in a run's folder: benchmark scores of the base model and of the result."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from workers.bounded import UnreadableFileError, read_model
from workers.durable import write_durably

TASK_FILE = "tasks.json"


class Score(BaseModel):
    """A value with its standard error; None if the harness gives no number."""

    value: float | None = None
    stderr: float | None = None


class MetricScores(BaseModel):
    base: Score
    result: Score
    is_higher_better: bool | None = None

    @property
    def change(self) -> float | None:
        """Result minus base."""
        if self.base.value is None or self.result.value is None:
            return None
        return self.result.value - self.base.value

    @property
    def verdict(self) -> Literal["better", "worse", "same"]:
        """`same` if the change is within two standard errors, or if neither direction is better."""
        if self.change is None or self.is_higher_better is None:
            return "same"
        # Both models answer the same questions, so this overestimates the error of the change: a cautious verdict.
        noise = 2 * math.hypot(self.base.stderr or 0.0, self.result.stderr or 0.0)
        if self.change == 0 or abs(self.change) <= noise:
            return "same"
        return "better" if (self.change > 0) == self.is_higher_better else "worse"


class TaskScores(BaseModel):
    """One benchmark, or the mean over a group of benchmarks, with the conditions under which both models were run."""

    task: str
    """Name in lm-evaluation-harness, which calls a benchmark a task."""
    group: str | None = None
    """The group with which the benchmark was evaluated; None if it was requested by name."""
    model: Literal["model", "best"] = "model"
    """The subfolder of the run that the result was loaded from."""
    limit: int | None = None
    """Number of samples, the first of the benchmark; None for all."""
    chat: bool = False
    """Whether the questions were put in the model's chat template."""
    num_samples: int | None = None
    num_fewshot: int | None = None
    version: str | None = None
    """Version of the benchmark, as given by its author."""
    harness: str
    """Version of lm-evaluation-harness."""
    metrics: dict[str, MetricScores]

    @property
    def label(self) -> str:
        """The benchmark's name with the conditions that are not the defaults."""
        limit = "" if self.limit is None else f"first {self.limit:,}"
        notes = [note for note in ("best" if self.model == "best" else "", limit, "chat" if self.chat else "") if note]
        return f"{self.task} ({', '.join(notes)})" if notes else self.task


class TaskFile(BaseModel):
    """tasks.json."""

    tasks: list[TaskScores] = []


def asked_for(scores: Sequence[TaskScores]) -> list[TaskScores]:
    """The scores without the members of groups whose mean is among them."""
    names = {score.task for score in scores}
    return [score for score in scores if score.group not in names]


def read_scores(run_folder: Path) -> list[TaskScores]:
    """The scores in tasks.json, none if it does not exist; ValueError if it is damaged."""
    path = run_folder / TASK_FILE
    try:
        return read_model(path, TaskFile).tasks
    except FileNotFoundError:
        return []
    except UnreadableFileError as error:
        raise ValueError(f"{path} is damaged ({error.reason}); move it away and evaluate again") from None


def add_scores(run_folder: Path, scores: Sequence[TaskScores]) -> list[TaskScores]:
    """Write scores to tasks.json, replacing earlier ones on the same terms, and return all that it then has.

    ValueError if the existing tasks.json is damaged.
    """
    every = [*read_scores(run_folder), *scores]
    merged = {(score.task, score.model, score.limit, score.chat): score for score in every}
    content = TaskFile(tasks=list(merged.values()))
    write_durably(run_folder / TASK_FILE, content.model_dump_json(indent=1).encode() + b"\n")
    return content.tasks


def scores_from(
    base: Mapping[str, Any], result: Mapping[str, Any], version: str, terms: Mapping[str, Any]
) -> list[TaskScores]:
    """The records of one evaluation, groups before their members.

    Args:
        base: what the harness returned for the base model; `result` is the same for the run's model.
        version: of the harness.
        terms: `model`, `limit` and `chat` of the records.
    """
    groups = {child: group for group, children in base["group_subtasks"].items() for child in children}
    records = []
    for task, values in base["results"].items():
        version_of_task = base["versions"].get(task)  # "Yaml" if its author gives none
        if metrics := _metrics(values, result["results"][task], base["higher_is_better"].get(task, {})):
            records.append(
                TaskScores(
                    task=task,
                    group=groups.get(task),
                    num_samples=values.get("sample_len"),
                    num_fewshot=base["n-shot"].get(task),
                    version=None if version_of_task in (None, "Yaml") else str(version_of_task),
                    harness=version,
                    metrics=metrics,
                    **terms,
                )
            )
    return sorted(records, key=lambda record: record.group is not None)


def _metrics(
    base: Mapping[str, Any], result: Mapping[str, Any], higher_is_better: Mapping[str, bool | None]
) -> dict[str, MetricScores]:
    """The harness names a value "metric,filter" and its error "metric_stderr,filter"; other keys have no comma."""
    scores = {}
    for key in base:
        metric, comma, way = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        base_score, result_score = (
            Score(value=_number(values.get(key)), stderr=_number(values.get(f"{metric}_stderr,{way}")))
            for values in (base, result)
        )
        name = metric if way == "none" else f"{metric}, {way}"
        scores[name] = MetricScores(base=base_score, result=result_score, is_higher_better=higher_is_better.get(metric))
    return scores


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):  # "N/A", or nothing
        return None
    return number if math.isfinite(number) else None
