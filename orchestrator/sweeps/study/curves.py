"""Numbers behind a study's plots: bootstrap intervals, where two curves cross, which points nothing dominates. Pure.

P points (runs at one k of one curve), S seeds, R held-out examples, N resamples.

A resample draws seeds and held-out examples with replacement, both at once and the same for all points (Owen 2007, "The
pigeonhole bootstrap", arXiv 0712.1111: two crossed factors, a little wider than it need be), so that differences of
points are paired. A loss is a ratio of sums over what was drawn: nats over tokens. With one seed the interval covers
held-out examples only, not training noise; with few seeds it is too narrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

CONFIDENCE = 0.95


def mean_losses(loss_sum_PSR: Array, num_tokens_R: Array) -> Array:
    """Loss of each point in nats per token, over all seeds and examples; shape (P,)."""
    return loss_sum_PSR.sum(axis=(1, 2)) / (loss_sum_PSR.shape[1] * num_tokens_R.sum())


def draw_seeds(num_seeds: int, num_resamples: int, rng: np.random.Generator) -> Array:
    """How much each seed counts in each resample; shape (N, S), every resample sums to 1."""
    return rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=num_resamples) / num_seeds


def resample_losses(loss_sum_PSR: Array, num_tokens_R: Array, seeds_NS: Array, rng: np.random.Generator) -> Array:
    """Losses of the points in each resample of seeds and examples; shape (N, P).

    Args:
        loss_sum_PSR: sum of the loss of each example, in nats, of each seed's run at each point.
        num_tokens_R: loss tokens of each example, the same in all runs.
        seeds_NS: of `draw_seeds`; the same for all domains of a study.
        rng: where the draws of examples come from.
    """
    num_rows = len(num_tokens_R)
    rows_NR = rng.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=len(seeds_NS)).astype(np.float64)
    sums_PSN = loss_sum_PSR @ rows_NR.T
    return np.einsum("psn,ns->np", sums_PSN, seeds_NS) / (rows_NR @ num_tokens_R)[:, None]


def interval(values_N: ArrayLike, confidence: float = CONFIDENCE) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.asarray(values_N, dtype=np.float64), [tail, 1 - tail])
    return float(low), float(high)


def find_crossings(x_P: ArrayLike, difference_P: ArrayLike) -> list[float]:
    """Where the broken line through the points changes its sign, in order of x; a point at 0 counts once."""
    x, y = np.asarray(x_P, dtype=np.float64), np.asarray(difference_P, dtype=np.float64)
    order = np.argsort(x)
    x, y = x[order], y[order]
    nonzero = np.flatnonzero(y)
    crossings = []
    for left, right in pairwise(nonzero):
        if y[left] * y[right] < 0:
            if right - left > 1:  # exactly 0 in between: the middle of that stretch
                crossings.append(float((x[left + 1] + x[right - 1]) / 2))
            else:
                crossings.append(float(x[left] - y[left] * (x[right] - x[left]) / (y[right] - y[left])))
    return crossings


@dataclass(frozen=True)
class Crossing:
    """Where mixing stops helping."""

    x: float | None
    """log2 k of the first crossing of the measured curves; None where they do not cross."""
    low: float
    high: float
    """The middle 95 % of the resamples' first crossings; NaN where fewer than half of them cross."""
    fraction_crossing: float
    """Of the resamples, how many cross at all."""
    num_crossings: int
    """Of the measured curves: more than one means that the curves are too close for the noise."""


def locate_crossing(x_P: ArrayLike, difference_P: ArrayLike, resampled_NP: Array) -> Crossing:
    """The crossing of two curves from their difference at P common points and its resamples."""
    measured = find_crossings(x_P, difference_P)
    firsts = [found[0] for row in resampled_NP if (found := find_crossings(x_P, row))]
    fraction = len(firsts) / len(resampled_NP)
    low, high = interval(firsts) if fraction >= 0.5 else (np.nan, np.nan)
    return Crossing(measured[0] if measured else None, low, high, fraction, len(measured))


def pareto_set(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the points that no other is at least as good as everywhere and better somewhere; low is good."""
    values_PD = np.asarray(points, dtype=np.float64)
    kept = []
    for index, point in enumerate(values_PD):
        dominated = (values_PD <= point).all(axis=1) & (values_PD < point).any(axis=1)
        if not dominated.any():
            kept.append(index)
    return kept
