"""The verdict on a run, and the outcome for each of its domains, from its evaluations."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.runs.noise import is_beyond_noise
from orchestrator.runs.records import Verdict
from workers.contracts import DomainFeedback


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
