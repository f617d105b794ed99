"""Steady thinning: few points, extremes kept, and a longer run changes the end of its curve only."""

import numpy as np
import pytest

from orchestrator.views.report.figures import Thinning

LIVE = Thinning(max_points=100, is_steady=True)


def series(num_lines: int) -> tuple[np.ndarray, np.ndarray]:
    steps = np.arange(1, num_lines + 1)
    return steps, np.sin(steps / 50.0)


@pytest.mark.parametrize("num_lines", [0, 1, 100, 101, 200, 201, 12_345, 100_000])
def test_few_points_and_never_more_than_asked(num_lines: int) -> None:
    x, y = LIVE.means(*series(num_lines))
    assert len(x) == len(y) <= 100
    assert len(x) >= min(num_lines, 50)


def test_a_run_that_goes_on_changes_the_last_point_only() -> None:
    steps, values = series(12_800)
    before_x, before_y = LIVE.means(steps[:12_000], values[:12_000])
    before_low, before_high = LIVE.extremes(values[:12_000]) or ([], [])
    for num_lines in (12_001, 12_100, 12_800):
        x, y = LIVE.means(steps[:num_lines], values[:num_lines])
        low, high = LIVE.extremes(values[:num_lines]) or ([], [])
        for before, now in ((before_x, x), (before_y, y), (before_low, low), (before_high, high)):
            assert len(now) >= len(before) and now[: len(before) - 1] == before[:-1]


def test_no_spike_is_lost() -> None:
    _, values = series(100_000)
    values[77_777], values[11_111], values[5] = 40.0, -30.0, np.nan
    extremes = LIVE.extremes(values)
    assert extremes is not None
    low, high = extremes
    assert max(v for v in high if v is not None) == 40.0 and min(v for v in low if v is not None) == -30.0


def test_a_bin_is_its_mean_lowest_and_highest() -> None:
    values = np.array([1.0, 3.0, np.nan, 5.0, np.nan, np.inf, 7.0])
    thinning = Thinning(max_points=4, is_steady=True)
    x, y = thinning.means(np.arange(1, 8), values)
    assert (x, y) == ([1.5, 3.5, 5.5, 7.0], [2.0, 5.0, None, 7.0])
    assert thinning.extremes(values) == ([1.0, 5.0, None, 7.0], [3.0, 5.0, None, 7.0])


def test_what_is_short_stays_as_it_is() -> None:
    values = np.array([1.0, np.nan, 3.0])
    assert LIVE.means(np.array([1, 2, 3]), values) == ([1, 2, 3], [1.0, None, 3.0])
    assert LIVE.extremes(values) is None
