"""What a tracker is, what it knows about its run, and the run's numbers as it receives them: one record per step, in
order, each step once, and only when it is complete.

    every step             train_loss_nats, tokens_per_second, tokens_total, learning_rate, grad_norm, weights_version
    with an evaluation     loss_nats/DOMAIN (held-out), standard_error_nats/DOMAIN (of that loss), mean_loss_nats,
                           worst_loss_nats, evaluation_seconds, signal_seconds, algorithm/KEY (its
                           internal values)
    then, and when a new   share/DOMAIN, epochs/DOMAIN
    version begins
    with an event          events/KIND (number so far)

Step 0 is the base model. Values that are not finite are left out; their event is counted. A record has the time when
its step was recorded, if the files contain it.
"""

import bisect
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.runs.folder import RunFolder
from workers.bounded import read_object
from workers.clock import parse_time
from workers.contracts import DomainFeedback, DomainWeights
from workers.durable import write_durably
from workers.validation.domain_losses import mean_loss, worst_loss

_STEP_COLUMNS = {
    "train_loss_nats": "loss_nats",
    "tokens_per_second": "tokens_per_second",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "weights_version": "weights_version",
}


@dataclass(frozen=True)
class StepRecord:
    step: int
    values: dict[str, float]
    time: float
    """When it was recorded, in seconds since the epoch; NaN in files of older versions."""


class RunRecords:
    def __init__(self, folder: Path) -> None:
        self.run = RunFolder(folder)
        self._whole_up_to = -1
        self._is_over = False
        self._num_events = 0

    def refresh(self, is_over: bool = False) -> None:
        """Read what is new. A step is complete once the line of the next step was seen before this look, because
        everything about a step is written before that line.

        Args:
            is_over: nobody writes any more, whether or not there is a result: every step is complete, except the last
                if its evaluation is missing. That step was interrupted, and a resumed run trains it again.
        """
        before = self.run.metrics.last_step - 1
        self.run.refresh()
        self._is_over = is_over or self.run.summary is not None
        self._whole_up_to = self._last_whole() if self._is_over else before

    def _last_whole(self) -> int:
        run, last = self.run, self.run.metrics.last_step
        every = run.setting("evaluation", "every")
        is_evaluated = last in (0, run.total_steps) or (isinstance(every, int) and last % every == 0)
        is_torn = run.summary is None and is_evaluated and all(feedback.step != last for feedback in run.feedback)
        return last - is_torn

    @property
    def has_begun(self) -> bool:
        return self._whole_up_to >= 0

    def after(self, step: int) -> Iterator[StepRecord]:
        """The records of all later steps that are complete."""
        if self._whole_up_to <= step:
            return
        table = self.run.metrics
        steps = table.steps
        moments = _Moments(self.run)
        if step < 0 and (base := moments.feedback.get(0)):
            yield self._record(0, moments.values(0, row=None), parse_time(base.time) if base.time else math.nan)
        times = table.column("time")
        columns = {key: table.column(name) for key, name in _STEP_COLUMNS.items()}
        columns["tokens_total"] = np.cumsum(table.column("num_tokens"))
        first, last = np.searchsorted(steps, [step, self._whole_up_to], side="right")
        for row in range(first, last):
            values = {key: float(column[row]) for key, column in columns.items()}
            yield self._record(int(steps[row]), values | moments.values(int(steps[row]), row), float(times[row]))

    def _record(self, step: int, values: Mapping[str, float], time: float) -> StepRecord:
        # In the order of writing: an event of a later step waits, and so do the events after it. If no later step
        # comes, for example because the run diverged, they belong to the last step.
        last_step = math.inf if self._is_over and step == self._whole_up_to else step
        waiting = self.run.events[self._num_events :]
        fresh = [event.kind for event in takewhile(lambda event: (event.step or 0) <= last_step, waiting)]
        self._num_events += len(fresh)
        counts = Counter(event.kind for event in self.run.events[: self._num_events])
        counted = {f"events/{kind}": float(counts[kind]) for kind in fresh}
        finite = {key: value for key, value in {**values, **counted}.items() if math.isfinite(value)}
        return StepRecord(step, finite, time)


class _Moments:
    """What a run has only for some steps, by step."""

    def __init__(self, run: RunFolder) -> None:
        self.feedback: dict[int, DomainFeedback] = {feedback.step: feedback for feedback in run.feedback}
        self._weights: dict[int, DomainWeights] = {weights.effective_step: weights for weights in run.weights}
        self._starts = sorted(self._weights)
        self._epochs = {key: run.metrics.column(key) for key in run.metrics.keys if key.startswith("epochs/")}
        self._mixing_rows = {int(step): row for row, step in enumerate(run.mixing.steps)}
        self._mixing: dict[str, NDArray[np.float64]] = {
            f"algorithm/{key.removeprefix('values/')}": run.mixing.column(key)
            for key in run.mixing.keys
            if key.startswith("values/")
        }

    def values(self, step: int, row: int | None) -> dict[str, float]:
        """`row`: the row of the step in metrics.jsonl; None for step 0."""
        values: dict[str, float] = {}
        if step in self._weights or step in self.feedback:
            num_begun = bisect.bisect_right(self._starts, step)
            shares = self._weights[self._starts[num_begun - 1]].shares if num_begun else {}
            values |= {f"share/{domain}": share for domain, share in shares.items()}
            values |= {} if row is None else {key: float(column[row]) for key, column in self._epochs.items()}
        if feedback := self.feedback.get(step):
            values |= _evaluation(feedback)
        if (mixing_row := self._mixing_rows.get(step)) is not None:
            values |= {key: float(column[mixing_row]) for key, column in self._mixing.items()}
        return values


def _evaluation(feedback: DomainFeedback) -> dict[str, float]:
    losses = {domain: feedback.loss_nats(domain) for domain in feedback.loss_sum_nats}
    return {
        **{f"loss_nats/{domain}": loss for domain, loss in losses.items()},
        **{f"standard_error_nats/{domain}": error for domain, error in feedback.standard_error_nats.items()},
        "mean_loss_nats": mean_loss(losses.values()),
        "worst_loss_nats": worst_loss(losses.values()),
        "evaluation_seconds": feedback.evaluation_seconds,
        "signal_seconds": feedback.signal_seconds,
    }


@dataclass(frozen=True)
class RunIdentity:
    folder: Path
    run_id: str
    name: str
    config: dict[str, Any]
    """The resolved configuration."""


def wall_time(record: StepRecord) -> float:
    """The time to log for a step, in seconds since the epoch; now, if it is not known."""
    return record.time if math.isfinite(record.time) else time.time()


class Tracker(Protocol):
    """One run in one tracker, new or resumed. If it raises, that is reported once and the run continues without it."""

    last_step: int
    """The last step logged; -1 before the first."""

    def log(self, records: Sequence[StepRecord]) -> None:
        """Log the next steps, all later than `last_step`, and advance `last_step`."""

    def close(self, is_finished: bool) -> None:
        """Flush and close; `is_finished`: the run has its result, otherwise it failed or was stopped."""


class LastStep:
    """The last step logged, kept in a small file for trackers that do not store it.

    It is valid for one place only: a run that is resumed with another place is logged there from its first step.
    """

    def __init__(self, path: Path, place: str) -> None:
        self._path, self._place = path, place

    def read(self) -> int:
        """The step; -1 if it is not known."""
        try:
            known = read_object(self._path)
            return int(known["last_step"]) if known["place"] == self._place else -1
        except (OSError, ValueError, KeyError, TypeError):  # none yet, or truncated
            return -1

    def write(self, step: int) -> None:
        write_durably(self._path, json.dumps({"place": self._place, "last_step": step}).encode())
