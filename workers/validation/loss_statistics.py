"""Standard errors of held-out losses and of their differences. Pure NumPy.

A loss is a ratio of sums over the E examples measured, R = sum(x) / sum(t), with x the nats and t the loss tokens of an
example. The examples are a simple random sample, and the error is the jackknife's: how the ratio changes when one
example is left out (Durbin 1959, Biometrika 46, 477),

    se(R)^2 = (E - 1) / E * sum(((x - R t) / (T - t))^2),   T = sum(t)

which is the delta method's n / (n - 1) * sum((x - R t)^2) / T^2 with T - t instead of T. This matters if few examples
have many of the tokens: with 30 examples of very different lengths, 62 % of the losses are within one error of the
truth instead of 58 %; with 120, 67 % instead of 66 %.

An example is the unit: its tokens depend on each other, and how examples share rows plays no role. The difference of
two evaluations of the same examples, D = sum(a - b) / sum(t), is a ratio of the same kind with x = a - b: what makes an
example hard cancels, and the error is that of the paired difference (Miller 2024, arXiv 2411.00640).

There are two questions, and so two errors. `standard_error` is that of the loss as an estimate for the *domain*: the
held-out set is itself a sample of it, so the error remains if the whole set is measured. `sampling_error` is that of
the loss as an estimate for the *whole held-out set*: it has the finite population correction sqrt(1 - E / N) and is 0
if all N examples are measured.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CLEAR = 2.0
"""A difference of more than this many standard errors is called clear; chance alone exceeds it one time in twenty."""


@dataclass(frozen=True)
class ExampleLosses:
    """The losses of one domain's E examples in one evaluation."""

    example_E: NDArray[np.uint64]  # identity of each example: a hash of its tokens and targets
    loss_sum_nats_E: NDArray[np.float64]
    num_tokens_E: NDArray[np.int64]  # loss tokens, at least one
    num_held_out: int  # examples of the whole held-out set

    @property
    def loss_sum_nats(self) -> float:
        return float(self.loss_sum_nats_E.sum())

    @property
    def num_tokens(self) -> int:
        return int(self.num_tokens_E.sum())

    @property
    def loss_nats(self) -> float:
        """Mean loss in nats per loss token; NaN if nothing was measured."""
        return self.loss_sum_nats / self.num_tokens if len(self.num_tokens_E) else math.nan

    @property
    def standard_error(self) -> float:
        """Standard error of `loss_nats` as an estimate of the domain's loss; NaN for fewer than two examples."""
        return ratio_error(self.loss_sum_nats_E, self.num_tokens_E)

    @property
    def sampling_error(self) -> float:
        """Standard error of `loss_nats` as an estimate of the whole held-out set's loss."""
        num_left_out = self.num_held_out - len(self.num_tokens_E)
        if num_left_out == 0:
            return 0.0 if math.isfinite(self.loss_nats) else math.nan
        return self.standard_error * math.sqrt(num_left_out / self.num_held_out)


def ratio_error(total_E: NDArray[np.float64], size_E: NDArray[np.int64]) -> float:
    """Standard error of sum(total) / sum(size); NaN for fewer than two units, or if a total is not finite.

    Sizes are positive.
    """
    num_units = len(total_E)
    if num_units < 2 or not np.isfinite(total_E).all():
        return math.nan
    whole = float(size_E.sum())
    residual_E = total_E - size_E * (float(total_E.sum()) / whole)
    moved_E = residual_E / (whole - size_E)
    return math.sqrt((num_units - 1) / num_units * float(moved_E @ moved_E))


def paired_difference(ours: ExampleLosses, theirs: ExampleLosses) -> tuple[float, float]:
    """Ours minus theirs in nats per loss token, and its standard error, over the examples that both measured.

    All runs on one data set measure the same examples; with different `evaluation.max_rows` one sample is a subset of
    the other. NaN without an example in common, and a NaN error with fewer than two.
    """
    _, our_E, their_E = np.intersect1d(ours.example_E, theirs.example_E, assume_unique=True, return_indices=True)
    if not len(our_E):
        return math.nan, math.nan
    difference_E = ours.loss_sum_nats_E[our_E] - theirs.loss_sum_nats_E[their_E]
    num_tokens_E = ours.num_tokens_E[our_E]
    return float(difference_E.sum()) / int(num_tokens_E.sum()), ratio_error(difference_E, num_tokens_E)


def error_of_mean(errors: Iterable[float]) -> float:
    """Standard error of the mean of independent numbers, such as the domains' losses."""
    each = list(errors)
    return math.sqrt(math.fsum(error * error for error in each)) / len(each) if each else math.nan


def is_clear(difference: float, standard_error: float) -> bool:
    """Whether a difference is more than noise; False if one of the numbers is NaN."""
    return abs(difference) > CLEAR * standard_error
