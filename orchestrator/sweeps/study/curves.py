"""Numbers behind a study's plots: bootstrap intervals, where two curves cross, which points nothing dominates. Pure.

P points (runs at one k of one curve), S seeds, R held-out examples, N resamples.

A resample draws seeds and held-out examples with replacement, both at once and the same for all points (Owen 2007, "The
pigeonhole bootstrap", arXiv 0712.1111: two crossed factors, a little wider than it need be), so that differences of
points are paired. A loss is a ratio of sums over what was drawn: nats over tokens. With one seed the interval covers
held-out examples only, not training noise; with few seeds it is too narrow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from orchestrator.sweeps.study.results import ResultRow
from workers.bounded import MAX_EXAMPLES_BYTES, read_json

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

    `loss_sum_PSR` is the sum of each example's loss, in nats, `num_tokens_R` its loss tokens, the same in all runs;
    `seeds_NS` are of `draw_seeds`, the same for all domains of a study.
    """
    num_rows = len(num_tokens_R)
    rows_NR = rng.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=len(seeds_NS)).astype(np.float64)
    sums_PSN = loss_sum_PSR @ rows_NR.T
    return np.einsum("psn,ns->np", sums_PSN, seeds_NS) / (rows_NR @ num_tokens_R)[:, None]


def interval(values_N: ArrayLike) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
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


Key = tuple[str, float]
"""Group and k of a cell: one point, measured with every seed."""


@dataclass(frozen=True)
class Points:
    """Losses of one domain at P points, from S seeds and R held-out examples, and N resamples of them."""

    keys: list[Key]
    loss_P: Array
    resampled_NP: Array

    def of(self, group: str) -> tuple[list[float], list[int]]:
        """The k of a group's points, in order, and their places."""
        found = sorted((k, place) for place, (name, k) in enumerate(self.keys) if name == group and k > 0)
        return [k for k, _ in found], [place for _, place in found]


def load_points(rows: Sequence[ResultRow], domain: str, seeds_NS: Array, rng: np.random.Generator) -> Points | None:
    """The points of all groups for one domain; those that lack a seed are left out. None without any.

    A `single` cell counts for its own domain alone.

    ValueError if two runs were not measured on the same examples, so that they cannot be compared.
    """
    by_key: dict[Key, dict[int, ResultRow]] = {}
    for row in rows:
        if row.group != "single" or row.subject == domain:
            by_key.setdefault((row.group, row.k), {})[row.seed] = row
    complete = {key: of_seed for key, of_seed in by_key.items() if len(of_seed) == seeds_NS.shape[1]}
    if not complete:
        return None
    sums = [
        [read_measured_losses(of_seed[seed].folders[-1], domain) for seed in sorted(of_seed)]
        for of_seed in complete.values()
    ]
    num_tokens_R = sums[0][0][1]
    for key, of_point in zip(complete, sums, strict=True):
        if any(not np.array_equal(tokens, num_tokens_R) for _, tokens in of_point):
            raise ValueError(f"{key[0]} at k={key[1]:g}: domain {domain!r} was measured on other examples")
    loss_sum_PSR = np.array([[loss_sum for loss_sum, _ in of_point] for of_point in sums])
    resampled_NP = resample_losses(loss_sum_PSR, num_tokens_R, seeds_NS, rng)
    return Points(list(complete), mean_losses(loss_sum_PSR, num_tokens_R), resampled_NP)


def read_measured_losses(run_folder: Path, domain: str) -> tuple[Array, Array]:
    """Summed loss in nats and loss tokens of each held-out example of a domain, (R,), in the order of the store."""
    columns = read_json(run_folder / "evaluation.json", MAX_EXAMPLES_BYTES, not_finite=True)["domains"][domain]
    row_R = np.array(columns["row"])
    example_R = np.array(columns.get("example", np.zeros_like(row_R)))  # older versions measured packed rows
    order_R = np.lexsort((example_R, row_R))
    return np.array(columns["loss_sum_nats"], np.float64)[order_R], np.array(columns["num_tokens"], np.float64)[order_R]


def mean_points(points: Mapping[str, Points], domains: Sequence[str]) -> Points:
    """The mean of several domains' losses at the points that all of them have."""
    each = [points[domain] for domain in domains]
    keys = [key for key in each[0].keys if all(key in other.keys for other in each)]
    places = [[other.keys.index(key) for key in keys] for other in each]
    return Points(
        keys,
        np.mean([other.loss_P[place] for other, place in zip(each, places, strict=True)], axis=0),
        np.mean([other.resampled_NP[:, place] for other, place in zip(each, places, strict=True)], axis=0),
    )
