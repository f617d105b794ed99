"""How many rows (sequences) of each domain a step takes, so that no domain is ever a whole row off its target.

Within a version of the weights the target of domain d after n rows is `carry_d + share_d * n`. `carry_d`, at most one
row, is what previous versions still owe the domain. Each step takes the rows that are due and fills up with those due
soonest among the domains behind their target: earliest deadline first, the quota method of apportionment (Balinski and
Young 1975; as a schedule, Steiner and Yeomans 1993).

Why not round each step: the largest-remainder method applied to one step alone would repeat the same rounding at every
step, and a share below one row per step would never be drawn. The remainders therefore accumulate in the target, and
the carry takes them across a change of the weights; without it, frequent versions would round small shares away again.

Why it never fails: a row of d may be taken once the target exceeds the count and must be taken before the target is a
whole row ahead of it. Earliest deadline first meets all these windows if any schedule does, and one exists as long as
the rows due by any step fit into the rows taken by then. They do, because targets sum to the rows taken and no target
is negative at the end of a step, which `settle` ensures when the weights change. Hence the bound: at the end of every
step |count - target| < 1 for each domain, however long the version lasts.
"""

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

# Targets are sums of a few float64 products; within this of a whole row, a target counts as having reached it.
_ROUNDING = 1e-9
# A share too small to give a row in the longest run counts as zero.
_NO_SHARE = 1e-12


def settle(owed_D: Numbers, shares_D: Numbers, rows_per_step: int) -> tuple[Numbers, Numbers]:
    """What a new version inherits of the rows owed (`target - count`): the debt to remember, and the carry with which
    its targets start. Both sum to 0.

    A domain without a share can neither claim nor pay; its balance is spread over the others by share. The carry is the
    debt, shifted for all in proportion to their shares until it fits: no target may be negative after the first step,
    and none more than a row off. The debt itself is not clipped, or a small domain could never accumulate a row over
    short versions.
    """
    has_share_D = shares_D > _NO_SHARE
    debt_D = np.where(has_share_D, owed_D, 0.0)
    debt_D = np.where(has_share_D, debt_D - shares_D * (debt_D.sum() / shares_D[has_share_D].sum()), 0.0)
    carry_D = np.zeros_like(debt_D)
    lowest = -np.minimum(shares_D[has_share_D] * rows_per_step, 1.0)
    carry_D[has_share_D] = _shift_into_bounds(debt_D[has_share_D], shares_D[has_share_D], lowest, 1.0)
    return debt_D, carry_D


def _shift_into_bounds(values: Numbers, shares: Numbers, lowest: Numbers, highest: float) -> Numbers:
    """`clip(values - shift * shares, lowest, highest)`, with the shift for which it sums to 0."""

    def clipped(shift: Numbers) -> Numbers:
        return np.clip(values - shift * shares, lowest, highest)

    # The sum falls with the shift, linearly between the shifts at which a value meets a bound.
    bends = np.sort(np.concatenate([(values - lowest) / shares, (values - highest) / shares]))
    sums = clipped(bends[:, None]).sum(axis=1)
    # At the first of them all values are `highest`, at the last all are `lowest`: in between it crosses 0.
    right = int(np.searchsorted(-sums, 0.0))
    part = sums[right - 1] / (sums[right - 1] - sums[right])
    return clipped(bends[right - 1] + part * (bends[right] - bends[right - 1]))


def take_rows(
    carry_D: Numbers, shares_D: Numbers, rows_per_step: int, counts_D: NDArray[np.int64], num_steps: int
) -> NDArray[np.int64]:
    """Rows of each domain in the next `num_steps` steps of a version, (num_steps, D); a step sums to `rows_per_step`.

    `counts_D` are the rows that the version has taken so far. Ties go to the domain that comes first.
    """
    taken_SD = np.empty((num_steps, len(shares_D)), dtype=np.int64)
    counts_D = counts_D.copy()
    done = int(counts_D.sum())
    with np.errstate(divide="ignore"):
        rows_between_D = 1.0 / shares_D  # rows of the mixture per row of the domain; infinite without a share
    for step in range(num_steps):
        done += rows_per_step
        open_D = carry_D + shares_D * done - counts_D
        take_D = np.maximum(np.floor(open_D + _ROUNDING), 0.0)
        missing = rows_per_step - int(take_D.sum())
        if missing > 0:
            rest_D = open_D - take_D
            due_D = np.where(rest_D > _ROUNDING, (1.0 - rest_D) * rows_between_D, np.inf)
            take_D[np.argsort(due_D, kind="stable")[:missing]] += 1.0
        taken_SD[step] = take_D
        counts_D += taken_SD[step]
    return taken_SD
