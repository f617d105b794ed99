"""Building blocks of plots: numbers thinned to what a screen can show, names as harmless text, common layout.

Colours of text, grid and background come from the page, which may be light or dark.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray

from orchestrator.runs.folder import RunFolder
from orchestrator.views.table import ResultTable

MAX_POINTS = 2000
MAX_LABEL_LENGTH = 28
NEUTRAL = "#7f8ea3"
MAX_POINTS_WITH_MARKERS = 60
MAX_STEPS_ALL_TICKED = 6
MAX_OPERATOR_LINES = 50
_APART = 0.36  # spread of the points on one line, in units of the distance between lines
_AXIS_PIXELS = 44
LOSS_NOTE = "Nats per loss token on the domain's held-out rows, where only assistant tokens are loss tokens"


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


ALL_POINTS = Thinning()


def gaps(values: ArrayLike) -> list[float | None]:
    """The values as a list, with None, which plots skip, for values that are not finite."""
    numbers = np.asarray(values, dtype=np.float64)
    return [number if math.isfinite(number) else None for number in numbers.tolist()]


def label(name: str) -> str:
    """A name for plotly, which interprets some HTML: escaped, and short enough to fit next to an axis."""
    short = name if len(name) <= MAX_LABEL_LENGTH else name[: MAX_LABEL_LENGTH - 3] + "..."
    return html.escape("".join(c if c.isprintable() else " " for c in short), quote=False)


@dataclass(frozen=True)
class Plot:
    """One plot with its title; `domain` if it shows only that domain."""

    title: str
    figure: go.Figure
    color: str | None = None
    domain: str | None = None


@dataclass(frozen=True)
class Section:
    title: str
    note: str
    plots: list[Plot] = field(default_factory=list)
    is_wide: bool = False
    table: ResultTable | None = None
    legend: dict[str, str] = field(default_factory=dict)


def figures_json(sections: Sequence[Section]) -> list[dict[str, Any]]:
    """All plots in page order, for a browser, with values that JSON can represent."""
    figures = [plot.figure for section in sections for plot in section.plots]
    return [
        {
            "data": [{key: _plain(value) for key, value in trace.to_plotly_json().items()} for trace in figure.data],
            "layout": figure.layout.to_plotly_json(),
        }
        for figure in figures
    ]


def _plain(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind != "f":
        return value.tolist()
    return gaps(value) if value.ndim == 1 else [gaps(row) for row in value]


def with_whole_steps(sections: list[Section], last_step: int) -> list[Section]:
    if last_step <= MAX_STEPS_ALL_TICKED:
        for section in sections:
            for plot in section.plots:
                plot.figure.update_xaxes(dtick=1)
    return sections


def layout(height: int, **axes: Any) -> dict[str, Any]:
    """The common layout, with `axes` merged into it."""
    base: dict[str, Any] = {
        "template": "none",
        "height": height,
        "margin": {"l": 46, "r": 10, "t": 8, "b": 32},
        "showlegend": False,
        "hovermode": "x unified",
        "xaxis": {"zeroline": False, "rangemode": "tozero", "tickformat": "~s", "nticks": 6, "hoverformat": ",d"},
        "yaxis": {"zeroline": False, "nticks": 6, "automargin": True},
    }
    for axis, settings in axes.items():
        base[axis] = base.get(axis, {}) | settings
    return base


def line(
    x: Sequence[float], y: Sequence[float | None], name: str, color: str, group: str | None = None, **more: Any
) -> go.Scatter:
    """A line; `group` is the domain that it belongs to, if any."""
    settings: dict[str, Any] = {"mode": "lines", "line": {"color": color, "width": 1.8}}
    if len(x) <= MAX_POINTS_WITH_MARKERS:  # a single point would not show as a line
        settings |= {"mode": "lines+markers", "marker": {"size": 4, "color": color}}
    settings |= more
    # As arrays, because plotly validates every number of a list.
    numbers = {"x": np.asarray(x), "y": np.array(y, dtype=np.float64)}
    return go.Scatter(**numbers, name=label(name), legendgroup=group, connectgaps=False, **settings)


def dots(x: Sequence[float], y: Sequence[float | None], name: str, color: str, **marker: Any) -> go.Scatter:
    """Points that no line joins."""
    return line(x, y, name, color, mode="markers", marker={"color": color, **marker})


def dotted(color: str, **place: Any) -> dict[str, Any]:
    """A dotted line from edge to edge; plotly's own function for it takes ten times as long."""
    return {"type": "line", "line": {"color": color, "dash": "dot", "width": 1.2}, **place}


@dataclass(frozen=True)
class Point:
    """A value, half the length of its error bar, and the texts shown when the pointer is over it."""

    value: float | None
    half_width: float | None
    told: list[str]


Points = Mapping[str, Mapping[int, Point]]
"""Model -> index of a line -> the model's point on it."""


def points_figure(
    names: Sequence[str], points: Points, colors: Mapping[str, str], hover: str, row_pixels: int
) -> go.Figure:
    """A line for each name, the first on top, with a point for each model or run.

    `hover` is plotly's hover template, where `customdata` is the texts of a point; `row_pixels` the distance of lines.
    """
    figure = go.Figure(layout=layout(_AXIS_PIXELS + row_pixels * len(names)))
    for index, (model, by_line) in enumerate(points.items()):
        shift = _APART * (index / (len(points) - 1) - 0.5) if len(points) > 1 else 0.0
        bars = {"type": "data", "array": [point.half_width for point in by_line.values()], "thickness": 1.4, "width": 4}
        figure.add_trace(
            go.Scatter(
                x=[point.value for point in by_line.values()],
                y=[place + shift for place in by_line],
                error_x=bars | {"color": colors[model]},
                mode="markers",
                marker={"size": 8, "color": colors[model]},
                name=label(model),
                customdata=[point.told for point in by_line.values()],
                hovertemplate=hover,
            )
        )
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=list(names), ticks="", range=[len(names) - 0.5, -0.5]
    )
    figure.update_layout(hovermode="closest")
    return figure


def shares_figure(
    run: RunFolder, colors: dict[str, str], height: int = 300, thinning: Thinning = ALL_POINTS
) -> go.Figure:
    """A stacked area chart; x is the number of steps done when a version took effect."""
    weights = run.weights
    if run.summary is not None:  # the version made by the last evaluation was never used
        weights = [version for version in weights if version.effective_step <= max(run.metrics.last_step, 1)]
    kept = {0, len(weights) - 1, *thinning.starts(len(weights)).tolist()}
    weights = [version for index, version in enumerate(weights) if index in kept or version.reason == "operator"]
    x = [version.effective_step - 1 for version in weights]
    end = max(run.metrics.last_step, x[-1] + 1)
    figure = go.Figure(layout=layout(height, yaxis={"range": [0, 1], "tickformat": ".0%", "hoverformat": ".1%"}))
    for domain in (name for name in run.domains if name in weights[-1].shares):  # the other domains are only measured
        color = colors[domain]
        y = [version.shares.get(domain, 0.0) for version in weights]
        area = {"mode": "lines", "line": {"color": color, "width": 0.5, "shape": "hv"}, "stackgroup": "shares"}
        figure.add_trace(line([*x, end], [*y, y[-1]], domain, color, domain, **area))
    asked = [version.effective_step - 1 for version in weights if version.reason == "operator"][-MAX_OPERATOR_LINES:]
    figure.update_layout(
        shapes=[dotted(NEUTRAL, xref="x", yref="y domain", x0=step, x1=step, y0=0, y1=1) for step in asked],
        xaxis_range=[x[0], end],
    )
    return figure


def matrix_figure(values_DD: list[list[float]], domains: list[str], limit: float, meaning: str) -> go.Figure:
    """A heat map of domains by domains, each cell with its number; `meaning` is the word between row and column."""
    names = [label(domain) for domain in domains]
    heatmap = go.Heatmap(
        x=names,
        y=names,
        z=values_DD,
        zmin=0.0,
        zmax=limit,
        texttemplate="%{z:.2f}",
        hovertemplate=f"%{{y}} {meaning} %{{x}}: %{{z:.3f}}<extra></extra>",
        colorscale=[[0.0, "rgba(79,127,201,0)"], [1.0, "rgba(79,127,201,0.9)"]],
        showscale=False,
        xgap=2,
        ygap=2,
    )
    figure = go.Figure(heatmap, layout(80 + 30 * len(names)))
    name_every_category(figure)
    figure.update_yaxes(type="category", dtick=1, autorange="reversed", showgrid=False, ticks="")
    figure.update_layout(hovermode="closest")
    return figure


def name_every_category(figure: go.Figure) -> None:
    """Make the horizontal axis categorical and label every category."""
    plain = {"tickformat": None, "rangemode": "normal", "showgrid": False, "ticks": "", "automargin": True}
    figure.update_xaxes(type="category", dtick=1, **plain)
