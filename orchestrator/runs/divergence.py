"""Whether the training loss rose permanently, although every step is meant to lower it.

The run's steps are divided into stretches, at most ten, each of at least five steps. The loss rose permanently if both
of the last two stretches are clearly above an earlier one. Every domain counts the same, whatever its share, since
otherwise a mixture that shifts to harder domains would look like a rising loss. A single domain that rises is being
forgotten, which the held-out losses show.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.runs.records import Divergence, Event
from orchestrator.runs.step_table import StepTable

MAX_STRETCHES, MIN_STRETCHES, MIN_STEPS = 10, 4, 5
SMALLEST_RISE_NATS, SMALLEST_RISE = 0.5, 0.25
"""In nats per token, and relative to the lowest loss. Both, as batches are small and losses differ in magnitude."""


def find_divergence(metrics: StepTable) -> Divergence | None:
    """The rise, by metrics.jsonl; None if there is none, or there are too few steps to tell."""
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
