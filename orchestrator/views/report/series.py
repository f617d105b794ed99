"""Prepare numbers for plots: thinned to what a screen can show, gaps as None, names as harmless text."""

import html
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray

MAX_POINTS = 2000
MAX_LABEL_LENGTH = 28


@dataclass(frozen=True)
class Thinning:
    """Thins a long series to what a screen can show, by bins of consecutive values.

    `is_steady`: bins hold a power of two of values, counted from the first, so that a running run only changes the last
    point and adds new ones, and a live page receives only these.
    """

    max_points: int = MAX_POINTS
    is_steady: bool = False

    def at_most(self, max_points: int) -> "Thinning":
        return Thinning(min(max_points, self.max_points), self.is_steady)

    def starts(self, num_lines: int) -> NDArray[np.int64]:
        """The first index of each bin; all indices if there are few."""
        if num_lines <= self.max_points:
            return np.arange(num_lines)
        if not self.is_steady:
            return np.linspace(0, num_lines, self.max_points + 1).astype(np.int64)[:-1]
        size = 1 << ((num_lines - 1) // self.max_points).bit_length()
        return np.arange(0, num_lines, size)

    def means(self, steps: NDArray[np.int64], values: NDArray[np.float64]) -> tuple[list[float], list[float | None]]:
        """Mean step of each bin, and the mean of its finite values."""
        if len(steps) <= self.max_points:
            return steps.tolist(), gaps(values)
        starts = self.starts(len(steps))
        is_finite = np.isfinite(values)
        num_finite = np.add.reduceat(is_finite.astype(np.int64), starts)
        sums = np.add.reduceat(np.where(is_finite, values, 0.0), starts)
        means = np.where(num_finite > 0, sums / np.maximum(num_finite, 1), np.nan)
        bin_sizes = np.diff(np.append(starts, len(steps)))
        return (np.add.reduceat(steps, starts) / bin_sizes).round(1).tolist(), gaps(means)

    def extremes(self, values: NDArray[np.float64]) -> tuple[list[float | None], list[float | None]] | None:
        """Lowest and highest finite value of each bin; None if nothing is thinned."""
        if len(values) <= self.max_points:
            return None
        starts = self.starts(len(values))
        is_finite = np.isfinite(values)
        low = np.minimum.reduceat(np.where(is_finite, values, np.inf), starts)
        high = np.maximum.reduceat(np.where(is_finite, values, -np.inf), starts)
        return gaps(low), gaps(high)


def gaps(values: ArrayLike) -> list[float | None]:
    """The values as a list, with None, which plots skip, for values that are not finite."""
    numbers = np.asarray(values, dtype=np.float64)
    return [number if math.isfinite(number) else None for number in numbers.tolist()]


def label(name: str) -> str:
    """A name for plotly, which interprets some HTML: escaped, and short enough to fit next to an axis."""
    short = name if len(name) <= MAX_LABEL_LENGTH else name[: MAX_LABEL_LENGTH - 3] + "..."
    return html.escape("".join(c if c.isprintable() else " " for c in short), quote=False)


def figure_json(figure: go.Figure) -> dict[str, Any]:
    """A figure for a browser, with values that JSON can represent."""
    traces = [{key: _plain(value) for key, value in trace.to_plotly_json().items()} for trace in figure.data]
    return {"data": traces, "layout": figure.layout.to_plotly_json()}


def _plain(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind != "f":
        return value.tolist()
    return gaps(value) if value.ndim == 1 else [gaps(row) for row in value]
