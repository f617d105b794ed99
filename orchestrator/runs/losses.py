"""The domains' losses as one number: their mean, and the worst of them; for one evaluation, and along a run.

NaN where one of them is NaN, or where there is none.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

Course = NDArray[np.float64]
"""A loss at each evaluation."""


def mean_loss(losses: Iterable[float]) -> float:
    """Every domain counts the same, whatever its size."""
    values = list(losses)
    return float(np.mean(values)) if values else math.nan


def worst_loss(losses: Iterable[float]) -> float:
    """The highest. Python's own `max` gives NaN only where it stands first: any comparison with it is False."""
    values = list(losses)
    return float(np.max(values)) if values else math.nan


def mean_course(losses: Mapping[str, Course], num_evaluations: int) -> Course:
    """The mean at each evaluation."""
    return np.mean(list(losses.values()), axis=0) if losses else np.full(num_evaluations, np.nan)


def worst_course(losses: Mapping[str, Course], num_evaluations: int) -> Course:
    """The worst at each evaluation."""
    return np.max(list(losses.values()), axis=0) if losses else np.full(num_evaluations, np.nan)
