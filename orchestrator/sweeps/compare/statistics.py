"""Means over seeds and what can be said of them: Student's t intervals, for single means and for paired differences."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel
from scipy import stats

CONFIDENCE = 0.95


class MeanEstimate(BaseModel):
    """A mean over seeds with half the width of its interval; None with one seed, which tells nothing of the spread."""

    mean: float
    half_width: float | None
    num_seeds: int
    held_out_error: float | None = None
    """Standard error over the held-out examples, which all seeds share: the interval does not include it."""

    @property
    def is_clear(self) -> bool:
        return self.half_width is not None and abs(self.mean) > self.half_width


def estimate(values: Sequence[float]) -> MeanEstimate | None:
    """Mean and t interval of at least one finite value, else None. Infinite and missing values do not count."""
    finite = np.array([value for value in values if math.isfinite(value)])
    if not finite.size:
        return None
    half_width = None
    if finite.size > 1:
        quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, finite.size - 1))
        half_width = quantile * float(finite.std(ddof=1)) / math.sqrt(finite.size)
    return MeanEstimate(mean=float(finite.mean()), half_width=half_width, num_seeds=int(finite.size))


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> MeanEstimate | None:
    """Ours less theirs, seed by seed: what the seed does to both cancels. Seeds that one of them lacks do not count."""
    return estimate([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
