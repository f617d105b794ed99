"""The plots of a study: losses over log2 k with their bands, and the trade-off of the strategies."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from orchestrator.config.study import STRATEGIES, StudyConfig
from orchestrator.sweeps.study.curves import Array, Crossing, interval, pareto_set
from orchestrator.sweeps.study.grid import format_fraction
from orchestrator.sweeps.study.series import Points, mean_points
from orchestrator.views.format import COLORS
from orchestrator.views.report.figures import NEUTRAL, label, layout

SERIES_COLORS = {
    "single": COLORS[0],
    "mix": COLORS[1],
    "fixed_general": COLORS[2],
    "fixed_special": COLORS[3],
    "small_general": COLORS[4],
}


def curves_figure(points: Points, groups: Sequence[str], crossing: Crossing | None) -> go.Figure:
    """One domain's loss over log2 k, a line with its band for each group that has points."""
    all_ks = sorted({k for _, k in points.keys if k > 0})
    ticks = {"tickvals": [math.log2(k) for k in all_ks], "ticktext": [format_fraction(k) for k in all_ks]}
    figure = go.Figure(layout=layout(250, xaxis=ticks | {"rangemode": "normal"}, yaxis={"tickformat": ".3~f"}))
    figure.update_layout(hovermode="closest")
    for group in groups:
        ks, places = points.of(group)
        if ks:
            _add_curve(figure, group, ks, points.loss_P[places], points.resampled_NP[:, places])
    if crossing is not None and crossing.x is not None:
        figure.add_vline(x=crossing.x, line={"color": NEUTRAL, "dash": "dot", "width": 1.2})
    return figure


def trade_off_figure(points: Mapping[str, Points], study: StudyConfig) -> go.Figure | None:
    """Strategies by their mean loss on specialised and on general domains; None while a domain has no result."""
    if not all(domain in points for domain in (*study.specialised, *study.general)):
        return None
    special, general = mean_points(points, study.specialised), mean_points(points, study.general)
    keys = [key for key in special.keys if key[0] in STRATEGIES and key in general.keys]
    if not keys:
        return None
    columns_P = [special.keys.index(key) for key in keys], [general.keys.index(key) for key in keys]
    x_P, y_P = special.loss_P[columns_P[0]], general.loss_P[columns_P[1]]
    x_NP, y_NP = special.resampled_NP[:, columns_P[0]], general.resampled_NP[:, columns_P[1]]
    figure = go.Figure(layout=layout(400, xaxis={"title": "mean loss, specialised", "rangemode": "normal"}))
    figure.update_yaxes(title="mean loss, general", tickformat=".3~f")
    figure.update_xaxes(tickformat=".3~f")
    figure.update_layout(hovermode="closest", margin={"l": 60, "r": 20, "t": 12, "b": 46})
    _add_dmt_path(figure, keys, x_P, y_P)
    best = pareto_set(list(zip(x_P, y_P, strict=True)))
    for place, (name, k) in enumerate(keys):
        text = f"dmt {format_fraction(k)}" if name == "dmt" else name.replace("_", " ")
        _add_strategy(
            figure,
            text,
            COLORS[STRATEGIES.index(name) % len(COLORS)],
            (float(x_P[place]), *interval(x_NP[:, place])),
            (float(y_P[place]), *interval(y_NP[:, place])),
            is_best=place in best,
        )
    return figure


def _add_curve(figure: go.Figure, group: str, ks: Sequence[float], loss_P: Array, resampled_NP: Array) -> None:
    x = [math.log2(k) for k in ks]
    bounds = [interval(column) for column in resampled_NP.T]
    band = [low for low, _ in bounds] + [high for _, high in reversed(bounds)]
    color = SERIES_COLORS[group]
    area: dict[str, Any] = {"fill": "toself", "fillcolor": color, "opacity": 0.18, "mode": "none", "hoverinfo": "skip"}
    figure.add_trace(go.Scatter(x=x + x[::-1], y=band, **area))
    figure.add_trace(
        go.Scatter(
            x=x,
            y=loss_P.tolist(),
            name=group,
            text=[format_fraction(k) for k in ks],
            hovertemplate="%{fullData.name}, k = %{text}: %{y:.3f}<extra></extra>",
            mode="lines+markers",
            line={"color": color, "width": 1.8},
            marker={"size": 5, "color": color},
        )
    )


def _add_dmt_path(figure: go.Figure, keys: Sequence[tuple[str, float]], x_P: Array, y_P: Array) -> None:
    """A pale line through the points of dmt, in order of k."""
    places = sorted((place for place, key in enumerate(keys) if key[0] == "dmt"), key=lambda place: keys[place][1])
    line = {"color": NEUTRAL, "width": 1, "dash": "dot"}
    path = go.Scatter(x=x_P[places].tolist(), y=y_P[places].tolist(), mode="lines", line=line, hoverinfo="skip")
    figure.add_trace(path)


def _add_strategy(
    figure: go.Figure,
    text: str,
    color: str,
    x: tuple[float, float, float],
    y: tuple[float, float, float],
    is_best: bool,
) -> None:
    """A point with its bars; x and y are value, lower and upper end of the interval."""
    ring = {"width": 3 if is_best else 0, "color": NEUTRAL}
    figure.add_trace(
        go.Scatter(
            x=[x[0]],
            y=[y[0]],
            name=label(text),
            text=[label(text)],
            hovertemplate="%{text}: specialised %{x:.3f}, general %{y:.3f}<extra></extra>",
            mode="markers+text",
            textposition="top right",
            marker={"size": 10, "color": color, "line": ring},
            error_x=_bars(*x, color),
            error_y=_bars(*y, color),
        )
    )


def _bars(value: float, low: float, high: float, color: str) -> dict[str, Any]:
    width = {"symmetric": False, "array": [high - value], "arrayminus": [value - low]}
    return {"type": "data", "color": color, "thickness": 1, "width": 0} | width
