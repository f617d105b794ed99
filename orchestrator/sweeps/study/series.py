"""Results as points to be plotted: the runs of a study on one curve, with what each held-out example loses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.sweeps.study.curves import Array, mean_losses, resample_losses
from orchestrator.sweeps.study.results import ResultRow, read_measured_losses

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

    Raises:
        ValueError: two runs were not measured on the same examples, so that they cannot be compared.
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
