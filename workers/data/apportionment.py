"""How many rows of each domain a step takes, so that no domain is ever a whole row off its target.

Within a version of the weights the target of domain d after n rows is `carry_d + share_d * n`, where `carry_d`, less
than one row, is what the version before left owing. Each step takes the rows that are due and fills up with those that
fall due soonest among the domains that are behind their target: earliest deadline first, which is the quota method of
apportionment (Balinski and Young 1975; as a schedule, Steiner and Yeomans 1993).

Why it always works out: a row of d may be taken once the target has passed the count and must be taken before the
target is a whole row ahead of it. Earliest deadline first keeps all these windows if any schedule does, and one does
as long as the rows due by any step fit into the rows taken by then. That holds because targets sum to the rows taken
and no target is negative at the end of a step, which is what `carry_over` sees to when the weights change.
"""

import numpy as np
from numpy.typing import NDArray

# Targets are sums of a few float64 products; a target within this of a whole row counts as having reached it.
_ROUNDING = 1e-9


def carry_over(
    owed_D: NDArray[np.float64], shares_D: NDArray[np.float64], rows_per_step: int
) -> NDArray[np.float64]:
    """What a new version takes over of the rows that the version before owes (`target - count`); sums to 0.

    A domain without a share can neither claim nor pay. A domain that is ahead by more than its first step brings
    would hold a negative target, so the excess is forgiven; what others have lost or gained by that is spread over
    them in proportion.
    """
    carry_D = np.where(shares_D > 0, np.maximum(owed_D, -shares_D * rows_per_step), 0.0)
    behind, ahead = carry_D[carry_D > 0].sum(), -carry_D[carry_D < 0].sum()
    if behind > ahead:
        return np.where(carry_D > 0, carry_D * (ahead / behind), carry_D)
    if ahead > behind:
        return np.where(carry_D < 0, carry_D * (behind / ahead), carry_D)
    return carry_D


def take_rows(
    carry_D: NDArray[np.float64],
    shares_D: NDArray[np.float64],
    rows_per_step: int,
    counts_D: NDArray[np.int64],
    num_steps: int,
) -> NDArray[np.int64]:
    """Rows of each domain in the next `num_steps` steps of a version, shape (num_steps, D), each row of it summing to
    `rows_per_step`.

    `counts_D` holds the rows that the version has taken so far. Ties fall to the domain that comes first.
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
