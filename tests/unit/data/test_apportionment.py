"""Exact shares: no domain a whole row off its target at any step, and none starved, however the weights change."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from workers.data.apportionment import settle, take_rows

_EPSILON = 1e-6  # of the float arithmetic of this test itself


@st.composite
def shares(draw: Any, num_domains: int) -> NDArray[np.float64]:
    """Shares that sum to 1: zeros, tiny ones, equal ones and ordinary ones mixed."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["equal", "flat", "skewed", "zeros", "tiny"]))
    share_D = random.dirichlet(np.full(num_domains, 0.1 if kind == "skewed" else 2.0))
    if kind == "equal":
        share_D = np.full(num_domains, 1.0 / num_domains)
    if kind == "zeros":
        share_D[random.random(num_domains) < 0.5] = 0.0
    if kind == "tiny":
        share_D[random.random(num_domains) < 0.3] *= 10.0 ** -random.integers(1, 14)
    share_D[-1] += 1e-3
    return share_D / share_D.sum()


@st.composite
def mixtures(draw: Any) -> tuple[int, list[tuple[NDArray[np.float64], int]]]:
    """Rows per step, and versions: shares and how many steps they hold."""
    num_domains = draw(st.one_of(st.integers(1, 6), st.integers(1, 200)))
    versions = draw(st.lists(st.tuples(shares(num_domains), st.integers(1, 30)), min_size=1, max_size=6))
    return draw(st.integers(1, 64)), versions


@settings(max_examples=150, deadline=None)
@given(mixtures())
def test_no_domain_is_a_whole_row_off_its_target(mixture: tuple[int, list[tuple[NDArray[np.float64], int]]]) -> None:
    rows_per_step, versions = mixture
    owed_D = np.zeros(len(versions[0][0]))
    for share_D, num_steps in versions:
        debt_D, carry_D = settle(owed_D, share_D, rows_per_step)
        assert abs(debt_D.sum()) < _EPSILON and abs(carry_D.sum()) < _EPSILON
        taken_SD = take_rows(carry_D, share_D, rows_per_step, np.zeros(len(share_D), dtype=np.int64), num_steps)
        assert (taken_SD.sum(axis=1) == rows_per_step).all() and (taken_SD >= 0).all()
        assert (taken_SD[:, share_D == 0] == 0).all()
        counts_SD = taken_SD.cumsum(axis=0)
        given_SD = share_D * (rows_per_step * np.arange(1, num_steps + 1))[:, None]
        assert abs(counts_SD - (carry_D + given_SD)).max() < 1 + _EPSILON
        assert abs(counts_SD - given_SD).max() < 2 + _EPSILON
        owed_D = debt_D + given_SD[-1] - counts_SD[-1]


@given(st.data(), st.integers(1, 64), st.integers(1, 40), st.lists(st.integers(1, 9), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_blocks_of_any_size_take_the_same_rows(data: Any, rows_per_step: int, domains: int, blocks: list[int]) -> None:
    share_D = data.draw(shares(domains))
    zeros = np.zeros(domains, dtype=np.int64)
    whole_SD = take_rows(np.zeros(domains), share_D, rows_per_step, zeros, sum(blocks))
    counts_D, parts = zeros, []
    for num_steps in blocks:
        parts.append(take_rows(np.zeros(domains), share_D, rows_per_step, counts_D, num_steps))
        counts_D = counts_D + parts[-1].sum(axis=0)
    assert (np.concatenate(parts) == whole_SD).all()


@pytest.mark.parametrize("steps_per_version", [1, 3, 50])
@pytest.mark.parametrize(
    ("rows_per_step", "others"), [(1, 3), (8, 2), (8, 100), (64, 199)], ids=lambda value: str(value)
)
def test_a_share_of_a_thousandth_is_not_starved(rows_per_step: int, others: int, steps_per_version: int) -> None:
    """Also where the weights change at every step and every other domain is cut off in the middle of a row."""
    random = np.random.default_rng(0)
    owed_D, num_taken = np.zeros(others + 1), 0
    num_versions = 6000 // (rows_per_step * steps_per_version)
    for _ in range(num_versions):
        share_D = random.uniform(0.9, 1.1, others + 1)
        share_D[:-1] *= 0.999 / share_D[:-1].sum()
        share_D[-1] = 0.001
        debt_D, carry_D = settle(owed_D, share_D, rows_per_step)
        counts_D = np.zeros(others + 1, dtype=np.int64)
        counts_D = take_rows(carry_D, share_D, rows_per_step, counts_D, steps_per_version).sum(axis=0)
        owed_D = debt_D + share_D * rows_per_step * steps_per_version - counts_D
        num_taken += int(counts_D[-1])
    assert abs(num_taken - 0.001 * num_versions * rows_per_step * steps_per_version) < 2


@pytest.mark.parametrize(
    ("parts", "rows_per_step"), [([28, 11, 11], 1), ([38, 9, 20, 5, 28], 1), ([3, 33, 9, 36, 20, 11], 4)], ids=str
)
def test_a_domain_that_has_its_rows_takes_no_other_because_of_a_rounding_error(
    parts: list[int], rows_per_step: int
) -> None:
    """Its target is a whole number then, and float64 may put it a little above: in exact numbers no domain is ever off
    by a whole row."""
    total = sum(parts)
    zeros = np.zeros(len(parts), dtype=np.int64)
    taken_SD = take_rows(np.zeros(len(parts)), np.array(parts) / total, rows_per_step, zeros, total)
    for step, count_D in enumerate(taken_SD.cumsum(axis=0).tolist(), start=1):
        for part, count in zip(parts, count_D, strict=True):
            assert abs(Fraction(part * rows_per_step * step, total) - count) < 1, step


def test_a_step_is_filled_up_with_the_row_that_falls_due_soonest() -> None:
    """Targets after the step: 0.2, 0.8 and 0. The first reaches a whole row in 0.8 / 0.6 rows, the second in one."""
    carry_D, share_D = np.array([-0.4, 0.6, -0.2]), np.array([0.6, 0.2, 0.2])
    assert take_rows(carry_D, share_D, 1, np.zeros(3, dtype=np.int64), 1).tolist() == [[0, 1, 0]]


def test_ties_fall_to_the_domain_that_comes_first_and_each_of_two_thousand_has_its_turn() -> None:
    share_D, zeros = np.full(2000, 1 / 2000), np.zeros(2000, dtype=np.int64)
    assert (take_rows(np.zeros(2000), share_D, 1, zeros, 2000) == np.eye(2000)).all()


@pytest.mark.parametrize("share", [0.0, 1e-13])
def test_what_a_domain_without_a_share_was_owed_goes_to_the_others_by_share(share: float) -> None:
    """A share that gives no row in the longest of runs is none."""
    debt_D, carry_D = settle(np.array([0.6, -0.3, -0.3]), np.array([share, 0.75, 0.25 - share]), 8)
    assert debt_D == pytest.approx([0.0, 0.15, -0.15])
    assert carry_D == pytest.approx([0.0, 0.15, -0.15])


def test_nobody_starts_so_far_ahead_that_the_first_step_leaves_a_negative_target() -> None:
    debt_D, carry_D = settle(np.array([-0.9, 0.45, 0.45]), np.array([0.1, 0.45, 0.45]), 2)
    assert debt_D == pytest.approx([-0.9, 0.45, 0.45])
    assert carry_D == pytest.approx([-0.2, 0.1, 0.1])


def test_nobody_starts_more_than_a_row_behind_though_the_debt_is_remembered() -> None:
    debt_D, carry_D = settle(np.array([3.0, -1.5, -1.5]), np.array([0.2, 0.4, 0.4]), 64)
    assert debt_D == pytest.approx([3.0, -1.5, -1.5])
    assert carry_D == pytest.approx([1.0, -0.5, -0.5])


def test_nobody_starts_more_than_a_row_ahead_either() -> None:
    debt_D, carry_D = settle(np.array([-3.0, 1.5, 1.5]), np.array([0.2, 0.4, 0.4]), 64)
    assert debt_D == pytest.approx([-3.0, 1.5, 1.5])
    assert carry_D == pytest.approx([-1.0, 0.5, 0.5])
