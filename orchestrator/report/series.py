"""Numbers made ready for a plot: thinned to what a screen can show, gaps as None, names as harmless text."""

import html
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_POINTS = 2000
MAX_LABEL_LENGTH = 28


def thin(
    steps: NDArray[np.int64], values: NDArray[np.float64], max_points: int = MAX_POINTS
) -> tuple[list[float], list[float | None]]:
    """At most `max_points` points: means over bins of consecutive lines, of whatever is finite in the bin."""
    if len(steps) <= max_points:
        return steps.tolist(), gaps(values)
    edges = np.linspace(0, len(steps), max_points + 1).astype(np.int64)[:-1]
    is_finite = np.isfinite(values)
    num_finite = np.add.reduceat(is_finite.astype(np.int64), edges)
    sums = np.add.reduceat(np.where(is_finite, values, 0.0), edges)
    means = np.where(num_finite > 0, sums / np.maximum(num_finite, 1), np.nan)
    bin_sizes = np.diff(np.append(edges, len(steps)))
    return (np.add.reduceat(steps, edges) / bin_sizes).round(1).tolist(), gaps(means)


def gaps(values: ArrayLike) -> list[float | None]:
    """The values as a list with None, which a plot leaves out, for whatever is not finite."""
    numbers = np.asarray(values, dtype=np.float64)
    return [number if math.isfinite(number) else None for number in numbers.tolist()]


def label(name: str) -> str:
    """A name for plotly, which reads a subset of HTML: nothing in it is markup, and it fits beside an axis."""
    short = name if len(name) <= MAX_LABEL_LENGTH else name[: MAX_LABEL_LENGTH - 3] + "..."
    return html.escape("".join(c if c.isprintable() else " " for c in short), quote=False)
