"""The mean and the worst of the domains' losses, for one evaluation and over a run.

NaN if one of them is NaN, or if there are none.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

Course = NDArray[np.float64]
"""A loss at each evaluation."""


def mean_loss(losses: Iterable[float]) -> float:
    """The unweighted mean over domains, whatever their sizes."""
    values = list(losses)
    return float(np.mean(values)) if values else math.nan


def worst_loss(losses: Iterable[float]) -> float:
    """The highest. Python's `max` returns NaN only if it comes first, as every comparison with NaN is False."""
    values = list(losses)
    return float(np.max(values)) if values else math.nan


def mean_course(losses: Mapping[str, Course], num_evaluations: int) -> Course:
    return np.mean(list(losses.values()), axis=0) if losses else np.full(num_evaluations, np.nan)


def worst_course(losses: Mapping[str, Course], num_evaluations: int) -> Course:
    return np.max(list(losses.values()), axis=0) if losses else np.full(num_evaluations, np.nan)
