"""Whether the training loss rose for good: the one thing that a step is to lower.

The run's steps are cut into stretches, ten at most, of five steps at least. It rose for good where both of the last two
stretches lie clearly above an earlier one. Each domain counts alike, however its share moves, or a mixture that turns
to harder domains would look like a loss that rises; one that rises alone is forgotten, which held-out losses tell.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.runs.records import Divergence, Event
from orchestrator.runs.step_table import StepTable

MAX_STRETCHES, MIN_STRETCHES, MIN_STEPS = 10, 4, 5
SMALLEST_RISE_NATS, SMALLEST_RISE = 0.5, 0.25
"""In nats per token, and as a part of the lowest loss: both, since batches are small and losses of all sizes."""


def find_divergence(metrics: StepTable) -> Divergence | None:
    """What rose, by metrics.jsonl; None where nothing did, or there are too few steps to tell."""
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
    """Whether the last attempt at a run was ended by a training loss or a gradient that is not finite."""
    return [event.kind for event in events if event.kind in ("attempt", "diverged")][-1:] == ["diverged"]


def _levels(metrics: StepTable, ends: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean loss of each stretch over those domains that were drawn in all of them; over all rows where none was."""
    names = [key for key in metrics.keys if key.startswith("domain_loss_nats/")]
    level_DW = np.array([_means(metrics.column(name), ends) for name in names]).reshape(len(names), len(ends))
    whole = level_DW[np.isfinite(level_DW).all(axis=1)]
    return np.asarray(whole.mean(axis=0)) if len(whole) else _means(metrics.column("loss_nats"), ends)


def _means(values: NDArray[np.float64], ends: NDArray[np.int64]) -> NDArray[np.float64]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a stretch without a value is NaN, as it should be
        return np.array([np.nanmean(part) for part in np.split(values, ends[:-1])])
