"""The verdict on a run, and the outcome for each of its domains, from its evaluations and the course of its training.

`is_beyond_noise` alone decides whether a domain's held-out loss differs between two evaluations, `find_divergence`
whether the training loss rose permanently, although every step is meant to lower it.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.runs.records import Divergence, Event, Verdict
from orchestrator.runs.step_table import StepTable
from workers.contracts import DomainFeedback
from workers.validation.example_losses import read_losses
from workers.validation.loss_statistics import is_clear, paired_difference

SMALLEST_SHOWN_NATS = 0.0005
"""Losses are shown with three decimals: a smaller difference is not visible."""
MAX_STRETCHES, MIN_STRETCHES, MIN_STEPS = 10, 4, 5
SMALLEST_RISE_NATS, SMALLEST_RISE = 0.5, 0.25
"""In nats per token, and relative to the lowest loss. Both, as batches are small and losses differ in magnitude."""


def find_divergence(metrics: StepTable) -> Divergence | None:
    """The rise, by metrics.jsonl; None if there is none, or there are too few steps to tell.

    The run's steps are divided into stretches, at most ten, each of at least five steps. The loss rose permanently if
    both of the last two stretches are clearly above an earlier one. Every domain counts the same, whatever its share,
    since otherwise a mixture that shifts to harder domains would look like a rising loss. A single domain that rises is
    being forgotten, which the held-out losses show.
    """
    num_stretches = min(MAX_STRETCHES, len(metrics) // MIN_STEPS)
    if num_stretches < MIN_STRETCHES:
        return None
    ends = np.linspace(0, len(metrics), num_stretches + 1).astype(np.int64)[1:]
    level_W = _levels(metrics, ends)
    if not np.isfinite(level_W).all():
        return None
    lowest = int(np.argmin(level_W[:-2]))
    end = float(level_W[-1])
    needed = level_W[lowest] + max(SMALLEST_RISE_NATS, SMALLEST_RISE * level_W[lowest])
    if level_W[-2:].min() <= needed:
        return None
    step = int(metrics.steps[ends[lowest] - 1])
    return Divergence(step=step, loss_nats_lowest=float(level_W[lowest]), loss_nats_end=end)


def has_broken_off(events: Sequence[Event]) -> bool:
    """Whether a training loss or gradient that is not finite ended the run's last attempt."""
    return [event.kind for event in events if event.kind in ("attempt", "diverged")][-1:] == ["diverged"]


def _levels(metrics: StepTable, ends: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean loss of each stretch over the domains that occur in all of them; over all rows if no domain does."""
    names = [key for key in metrics.keys if key.startswith("domain_loss_nats/")]
    level_DW = np.array([_means(metrics.column(name), ends) for name in names]).reshape(len(names), len(ends))
    whole = level_DW[np.isfinite(level_DW).all(axis=1)]
    return np.asarray(whole.mean(axis=0)) if len(whole) else _means(metrics.column("loss_nats"), ends)


def _means(values: NDArray[np.float64], ends: NDArray[np.int64]) -> NDArray[np.float64]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a stretch without values is NaN, as intended
        return np.array([np.nanmean(part) for part in np.split(values, ends[:-1])])


def is_beyond_noise(domain: str, earlier: DomainFeedback, later: DomainFeedback, folder: Path | None = None) -> bool:
    """Whether the loss rose or fell by more than noise; False if either was not measured or is not finite.

    The losses by example in the run's `folder` allow a more precise answer. Without standard errors, as in files of
    older versions, every visible difference counts.
    """
    change = later.loss_nats(domain) - earlier.loss_nats(domain)
    if not math.isfinite(change) or abs(change) < SMALLEST_SHOWN_NATS:
        return False
    error = _error_of_change(domain, earlier, later, folder)
    return error is None or is_clear(change, error)


def _error_of_change(domain: str, earlier: DomainFeedback, later: DomainFeedback, folder: Path | None) -> float | None:
    """Paired over the examples if possible, else as if the two evaluations had different ones; None if unknown."""
    if earlier.step == 0 and domain in later.change_from_first:
        return later.change_from_first[domain].standard_error
    if folder is not None:
        try:
            ours, theirs = (read_losses(folder, feedback.step).get(domain) for feedback in (later, earlier))
        except (OSError, ValueError):  # not recorded, or damaged
            ours = theirs = None
        if ours is not None and theirs is not None and math.isfinite(error := paired_difference(ours, theirs)[1]):
            return error
    each = [feedback.standard_error_nats.get(domain) for feedback in (earlier, later)]
    return math.hypot(*(error for error in each if error is not None)) if None not in each else None


@dataclass(frozen=True)
class DomainCourse:
    """How one domain ended; None if not measured."""

    loss_nats_lowest: float | None = None
    lowest_step: int | None = None
    is_worse_than_base: bool | None = None
    is_past_lowest: bool | None = None


def domain_course(domain: str, evaluations: Sequence[DomainFeedback], folder: Path | None = None) -> DomainCourse:
    """The domain's course; step 0 is the base, and can be the lowest. `folder`: of the run."""
    measured = [feedback for feedback in evaluations if math.isfinite(feedback.loss_nats(domain))]
    if not measured:
        return DomainCourse()
    lowest, end = min(measured, key=lambda feedback: feedback.loss_nats(domain)), evaluations[-1]
    if end is not measured[-1] or end.step == 0:
        return DomainCourse(lowest.loss_nats(domain), lowest.step)
    return DomainCourse(
        loss_nats_lowest=lowest.loss_nats(domain),
        lowest_step=lowest.step,
        is_worse_than_base=_is_above(domain, measured[0], end, folder) if measured[0].step == 0 else None,
        is_past_lowest=lowest.step > 0 and _is_above(domain, lowest, end, folder),
    )


def decide(
    evaluations: Sequence[DomainFeedback],
    judged_E: NDArray[np.float64],
    courses: Mapping[str, DomainCourse],
    *,
    has_diverged: bool,
    has_broken_off: bool,
) -> Verdict:
    """The outcome of a run.

    Args:
        evaluations: all of them, in order of their steps; `courses` has the outcome for each domain.
        judged_E: the loss that decides, at each of them, in nats per token; NaN if not finite.
        has_diverged: the training loss rose permanently, or a loss at the end is not finite.
        has_broken_off: a training loss or gradient that is not finite ended the run.
    """
    if has_broken_off:
        return "diverged"
    later_E = judged_E[1:]
    if not evaluations or evaluations[0].step != 0 or not math.isfinite(judged_E[0]) or not len(later_E):
        return "not_measured"
    is_beaten = bool((later_E < judged_E[0]).any())
    if not is_beaten and np.isfinite(later_E).any() and _are_alike(evaluations, courses):
        return "unchanged"
    if not is_beaten:
        return "worse_than_base"
    if has_diverged:
        return "diverged"
    if not later_E[-1] < judged_E[0]:
        return "ended_worse"
    if _are_alike(evaluations, courses):
        return "unchanged"
    return "mixed" if any(course.is_worse_than_base for course in courses.values()) else "improved"


def _is_above(domain: str, earlier: DomainFeedback, later: DomainFeedback, folder: Path | None) -> bool:
    rose = later.loss_nats(domain) > earlier.loss_nats(domain)
    return rose and is_beyond_noise(domain, earlier, later, folder)


def _are_alike(evaluations: Sequence[DomainFeedback], courses: Mapping[str, DomainCourse]) -> bool:
    """Whether every domain's loss is the same at the end as at the start."""
    first, last = evaluations[0], evaluations[-1]
    return all(math.isfinite(last.loss_nats(name)) and not is_beyond_noise(name, first, last) for name in courses)
