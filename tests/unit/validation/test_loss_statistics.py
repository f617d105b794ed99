"""Standard errors against numbers worked out by hand, another implementation, and repeated draws."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from workers.validation.loss_statistics import ExampleLosses, error_of_mean, is_clear, paired_difference, ratio_error


def losses(nats: Any, tokens: Any, num_held_out: int = 1000, first: int = 0) -> ExampleLosses:
    nats_E, tokens_E = np.asarray(nats, dtype=np.float64), np.asarray(tokens, dtype=np.int64)
    return ExampleLosses(np.arange(first, first + len(nats_E)).astype(np.uint64), nats_E, tokens_E, num_held_out)


def test_the_error_is_that_of_the_formula_worked_out_by_hand() -> None:
    """R = 18 / 6 = 3; residuals 2 - 3, 4 - 6, 12 - 9 over 6 - 1, 6 - 2, 6 - 3; se^2 = 2/3 * (1/25 + 1/4 + 1)."""
    found = losses([2.0, 4.0, 12.0], [1, 2, 3], num_held_out=4)
    assert found.loss_nats == 3.0
    assert found.standard_error == pytest.approx(math.sqrt(0.86))
    assert found.sampling_error == pytest.approx(math.sqrt(0.86) / 2)


def test_with_examples_of_like_length_it_is_the_error_of_a_mean() -> None:
    nats = np.random.default_rng(0).gamma(2.0, size=30)
    found = losses(nats * 7, np.full(30, 7))
    assert found.standard_error == pytest.approx(nats.std(ddof=1) / math.sqrt(30))


def test_it_is_how_the_loss_moves_where_one_example_is_left_out() -> None:
    """The jackknife by its definition, one loss after the other."""
    nats, tokens, _ = population(5, 40)
    whole, count = nats.sum() / tokens.sum(), len(nats)
    without = [np.delete(nats, i).sum() / np.delete(tokens, i).sum() for i in range(count)]
    expected = math.sqrt((count - 1) / count * sum((loss - whole) ** 2 for loss in without))
    assert losses(nats, tokens).standard_error == pytest.approx(expected, rel=1e-9)


def test_where_all_is_measured_the_error_of_the_domain_stays_and_that_of_the_set_is_none() -> None:
    found = losses([2.0, 4.0, 12.0], [1, 2, 3], num_held_out=3)
    assert found.sampling_error == 0.0 and found.standard_error > 0.5


def test_of_one_example_nothing_is_known_of_the_error() -> None:
    found = losses([2.0], [4], num_held_out=1)
    assert found.loss_nats == 0.5 and math.isnan(found.standard_error) and found.sampling_error == 0.0
    nothing = losses([], [])
    assert math.isnan(nothing.loss_nats) and math.isnan(nothing.standard_error)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_has_no_error(bad: float) -> None:
    found = losses([2.0, bad, 1.0], [1, 2, 3], num_held_out=3)
    assert not math.isfinite(found.loss_nats)
    assert math.isnan(found.standard_error) and math.isnan(found.sampling_error)
    assert math.isnan(paired_difference(found, losses([2.0, 1.0, 1.0], [1, 2, 3]))[1])


def population(seed: int, size: int) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Tokens of very unlike lengths, with losses of two models that depend on the length and on each other."""
    rng = np.random.default_rng(seed)
    tokens = np.minimum(rng.lognormal(3.5, 1.0, size).astype(np.int64) + 1, 500)  # what fits into a row
    hardness = rng.gamma(4.0, 0.5, size) + 3.0 / np.sqrt(tokens)
    first = tokens * hardness
    return first, tokens, first - tokens * (0.1 + 0.05 * rng.normal(size=size))


@pytest.mark.parametrize(("size", "count"), [(400, 120), (400, 300), (20_000, 120)])
def test_the_errors_cover_what_they_say(size: int, count: int) -> None:
    """Within one standard error of the whole set's loss in 68 % of the samples, within two in 95 %; alike for the
    difference of two models."""
    first, tokens, second = population(1, size)
    rng = np.random.default_rng(2)
    of_loss, of_difference, pairs = [], [], []
    for _ in range(800):
        chosen = rng.choice(size, count, replace=False)
        a, b = (losses(nats[chosen], tokens[chosen], num_held_out=size) for nats in (first, second))
        of_loss.append((a.loss_nats - first.sum() / tokens.sum()) / a.sampling_error)
        difference, error = paired_difference(b, a)
        whole = (second - first).sum() / tokens.sum()
        of_difference.append((difference - whole) / (error * math.sqrt(1 - count / size)))
        pairs.append(error / math.hypot(a.standard_error, b.standard_error))
    for off in (np.abs(of_loss), np.abs(of_difference)):
        assert 0.60 < (off < 1).mean() < 0.74
        assert 0.90 < (off < 2).mean() < 0.98
    assert np.mean(pairs) < 0.2  # what makes an example hard cancels


def test_a_difference_is_over_the_examples_that_both_measured() -> None:
    ours, theirs = losses([1.0, 2.0, 9.0], [1, 2, 3], first=5), losses([7.0, 3.0, 5.0], [9, 1, 2], first=4)
    difference, error = paired_difference(ours, theirs)  # examples 5 and 6
    assert difference == pytest.approx((1.0 - 3.0 + 2.0 - 5.0) / 3)
    assert error == pytest.approx(ratio_error(np.array([-2.0, -3.0]), np.array([1, 2])))
    assert paired_difference(theirs, ours)[0] == -difference
    assert all(math.isnan(value) for value in paired_difference(ours, losses([1.0], [1], first=50)))
    assert paired_difference(ours, ours) == (0.0, 0.0)


def test_the_order_of_the_examples_plays_no_role() -> None:
    first, tokens, second = population(3, 50)
    a, b = losses(first, tokens), losses(second, tokens)
    order = np.random.default_rng(4).permutation(50)
    shuffled = ExampleLosses(b.example_E[order], b.loss_sum_nats_E[order], b.num_tokens_E[order], b.num_held_out)
    assert paired_difference(a, shuffled) == pytest.approx(paired_difference(a, b), rel=1e-12)


def test_the_mean_of_domains_and_what_is_clear() -> None:
    assert error_of_mean([3.0, 4.0]) == 2.5
    assert math.isnan(error_of_mean([])) and math.isnan(error_of_mean([1.0, math.nan]))
    assert is_clear(-0.21, 0.1) and not is_clear(0.19, 0.1) and not is_clear(0.5, math.nan)
