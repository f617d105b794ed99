"""Numbers made ready for a plot: thinned to what a screen can show, gaps as None, names as harmless text."""

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
    """How a long series becomes one that a screen can show: bins of consecutive lines.

    `is_steady`: bins hold a power of two of lines, counted from the first. A run that goes on then changes the last
    point and adds new ones, and a page that follows it is sent only these.
    """

    max_points: int = MAX_POINTS
    is_steady: bool = False

    def at_most(self, max_points: int) -> "Thinning":
        """The same with fewer points."""
        return Thinning(min(max_points, self.max_points), self.is_steady)

    def starts(self, num_lines: int) -> NDArray[np.int64]:
        """The first line of each bin; every line is one where they are few."""
        if num_lines <= self.max_points:
            return np.arange(num_lines)
        if not self.is_steady:
            return np.linspace(0, num_lines, self.max_points + 1).astype(np.int64)[:-1]
        size = 1 << ((num_lines - 1) // self.max_points).bit_length()
        return np.arange(0, num_lines, size)

    def means(self, steps: NDArray[np.int64], values: NDArray[np.float64]) -> tuple[list[float], list[float | None]]:
        """Mean step of each bin, and the mean of whatever is finite in it."""
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
        """Lowest and highest finite value of each bin; None where nothing is thinned: the line shows them."""
        if len(values) <= self.max_points:
            return None
        starts = self.starts(len(values))
        is_finite = np.isfinite(values)
        low = np.minimum.reduceat(np.where(is_finite, values, np.inf), starts)
        high = np.maximum.reduceat(np.where(is_finite, values, -np.inf), starts)
        return gaps(low), gaps(high)


def thin(
    steps: NDArray[np.int64], values: NDArray[np.float64], max_points: int = MAX_POINTS
) -> tuple[list[float], list[float | None]]:
    """At most `max_points` points: means over bins of consecutive lines, of whatever is finite in the bin."""
    return Thinning(max_points).means(steps, values)


def gaps(values: ArrayLike) -> list[float | None]:
    """The values as a list with None, which a plot leaves out, for whatever is not finite."""
    numbers = np.asarray(values, dtype=np.float64)
    return [number if math.isfinite(number) else None for number in numbers.tolist()]


def label(name: str) -> str:
    """A name for plotly, which reads a subset of HTML: nothing in it is markup, and it fits beside an axis."""
    short = name if len(name) <= MAX_LABEL_LENGTH else name[: MAX_LABEL_LENGTH - 3] + "..."
    return html.escape("".join(c if c.isprintable() else " " for c in short), quote=False)


def figure_json(figure: go.Figure) -> dict[str, Any]:
    """A figure for a browser, in numbers that JSON has."""
    traces = [{key: _plain(value) for key, value in trace.to_plotly_json().items()} for trace in figure.data]
    return {"data": traces, "layout": figure.layout.to_plotly_json()}


def _plain(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind != "f":
        return value.tolist()
    return gaps(value) if value.ndim == 1 else [gaps(row) for row in value]
