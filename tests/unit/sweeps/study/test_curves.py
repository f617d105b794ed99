"""Intervals that cover, crossings and Pareto sets on data whose answer is known."""

import math

import numpy as np
import pytest

from orchestrator.sweeps.study.curves import (
    draw_seeds,
    find_crossings,
    interval,
    locate_crossing,
    mean_losses,
    pareto_set,
    resample_losses,
)


def simulate(rng: np.random.Generator, num_seeds: int, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """One point: rows differ in length and difficulty, seeds in skill, and both together a little."""
    tokens_R = rng.integers(20, 200, num_rows).astype(np.float64)
    rows_R, seeds_S = rng.normal(0, 0.4, num_rows), rng.normal(0, 0.1, num_seeds)
    loss_SR = 2.0 + rows_R + seeds_S[:, None] + rng.normal(0, 0.05, (num_seeds, num_rows))
    return (loss_SR * tokens_R)[None], tokens_R


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    num_simulations, covered = 300, 0
    for _ in range(num_simulations):
        loss_sum_PSR, tokens_R = simulate(rng, num_seeds=10, num_rows=80)
        resampled = resample_losses(loss_sum_PSR, tokens_R, draw_seeds(10, 400, rng), rng)
        low, high = interval(resampled[:, 0])
        covered += low <= 2.0 <= high
    assert 0.91 <= covered / num_simulations <= 0.99


def test_an_interval_over_rows_alone_is_too_narrow_when_seeds_differ() -> None:
    """With one seed the interval knows nothing of training noise: the page says so, and here it shows."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        tokens_R = np.full(400, 50.0)
        loss_sum_PSR = ((2.0 + rng.normal(0, 0.1) + rng.normal(0, 0.4, (1, 400))) * tokens_R)[None]
        low, high = interval(resample_losses(loss_sum_PSR, tokens_R, draw_seeds(1, 300, rng), rng)[:, 0])
        covered += low <= 2.0 <= high
    assert covered / 200 < 0.6


def test_a_loss_is_a_ratio_of_sums_not_a_mean_of_ratios() -> None:
    loss_sum_PSR = np.array([[[10.0, 1.0]]])
    tokens_R = np.array([100.0, 1.0])
    assert mean_losses(loss_sum_PSR, tokens_R) == pytest.approx([11 / 101])
    rng = np.random.default_rng(0)
    resampled = resample_losses(loss_sum_PSR, tokens_R, draw_seeds(1, 500, rng), rng)
    assert set(np.round(resampled[:, 0], 9)) == {0.1, 1.0, round(11 / 101, 9)}


def test_points_are_resampled_together() -> None:
    rng = np.random.default_rng(2)
    loss_sum_PSR, tokens_R = simulate(rng, 3, 40)
    both = np.concatenate([loss_sum_PSR, loss_sum_PSR + 0.01 * tokens_R])
    resampled = resample_losses(both, tokens_R, draw_seeds(3, 200, rng), rng)
    assert np.ptp(resampled[:, 0]) > 0.1
    assert resampled[:, 1] - resampled[:, 0] == pytest.approx(np.full(200, 0.01))


@pytest.mark.parametrize(
    ("x", "difference", "expected"),
    [
        ([-8, -6, -4, -2, 0], [-0.3, -0.1, 0.1, 0.2, 0.4], [-5.0]),
        ([-4, -8, -6], [0.3, -0.2, -0.1], [-5.5]),  # in any order
        ([-2, -1, 0], [1.0, 2.0, 3.0], []),
        ([-2, -1, 0], [-1.0, 0.0, 1.0], [-1.0]),
        ([-3, -2, -1, 0], [-1.0, 0.0, 0.0, 1.0], [-1.5]),
        ([-2, -1, 0], [0.0, 1.0, 2.0], []),
        ([-3, -2, -1, 0], [-1.0, 1.0, -1.0, 1.0], [-2.5, -1.5, -0.5]),
    ],
)
def test_crossings_of_known_lines(x: list[float], difference: list[float], expected: list[float]) -> None:
    assert find_crossings(x, difference) == pytest.approx(expected)


def test_the_papers_7b_maths_curves_cross_between_one_64th_and_one_16th() -> None:
    """GSM8K, single and mix, 7B (arXiv 2310.05492, table 1): mixing helps at 1/64, hurts at 1/16."""
    single, mix = [12.70, 22.71, 35.90, 43.37, 49.10], [14.78, 25.77, 32.97, 41.98, 47.53]
    (crossing,) = find_crossings(np.log2([1 / 256, 1 / 64, 1 / 16, 1 / 4, 1]), np.subtract(mix, single))
    assert math.log2(1 / 64) < crossing < math.log2(1 / 16)
    assert crossing == pytest.approx(-6 + 2 * 3.06 / (3.06 + 2.93))


def test_a_crossing_has_an_interval_where_most_resamples_cross() -> None:
    rng = np.random.default_rng(3)
    x = np.array([-8.0, -6.0, -4.0, -2.0, 0.0])
    difference = 0.1 * (x + 5)
    found = locate_crossing(x, difference, difference + rng.normal(0, 0.02, (500, 1)))
    assert found.x == pytest.approx(-5.0) and found.fraction_crossing == 1.0 and found.num_crossings == 1
    assert (found.low, found.high) == pytest.approx((-5.4, -4.6), abs=0.1)
    apart = locate_crossing(x, difference + 3, difference + 3 + rng.normal(0, 0.02, (500, 1)))
    assert apart.x is None and math.isnan(apart.low) and apart.fraction_crossing == 0.0


def test_the_pareto_set_keeps_what_nothing_dominates() -> None:
    points = [(1.0, 4.0), (2.0, 2.0), (3.0, 3.0), (4.0, 1.0), (2.0, 2.0), (1.0, 5.0)]
    assert pareto_set(points) == [0, 1, 3, 4]  # equal points keep each other
    assert pareto_set([(1.0, 1.0)]) == [0]
