"""The plots of one run. Colours of text, grid and ground come from the page, which knows light from dark."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from orchestrator.palette import color_by_name
from orchestrator.report.series import Thinning, label
from orchestrator.report.tables import Rows
from orchestrator.run_folder import RunFolder
from orchestrator.summary import base_losses, evaluation_losses

NEUTRAL = "#7f8ea3"
MAX_TRAINING_POINTS = 400  # a small plot: more would be a block of ink
MAX_CELLS_WITH_NUMBERS = 8
MAX_POINTS_WITH_MARKERS = 60
MAX_STEPS_ALL_TICKED = 6
MAX_OPERATOR_LINES = 50
ALL_POINTS = Thinning()

LOSS_NOTE = "Nats per loss token on the domain's held-out rows, where only assistant tokens are loss tokens"


@dataclass(frozen=True)
class Plot:
    """One plot under its title; `domain` where it shows that domain alone."""

    title: str
    figure: go.Figure
    color: str | None = None
    domain: str | None = None


@dataclass(frozen=True)
class Section:
    """Plots that belong together, and one sentence that says what they show."""

    title: str
    note: str
    plots: list[Plot] = field(default_factory=list)
    is_wide: bool = False
    table: Rows | None = None
    legend: dict[str, str] = field(default_factory=dict)


def run_sections(run: RunFolder, thinning: Thinning = ALL_POINTS) -> list[Section]:
    """Everything that is plotted of one run; sections without data are left out."""
    sections = [
        Section(
            "Shares over time",
            "Share of each domain in the mixture; a version holds until the next, and a dotted line marks one that a "
            "person set. The horizontal axis of every plot counts optimizer steps.",
            [Plot("", shares_figure(run, color_by_name(run.domains), thinning=thinning))] if run.weights else [],
            is_wide=True,
        ),
        Section(
            "Loss per domain",
            f"{LOSS_NOTE}: points are evaluations, the dotted line is the base model, the pale line is training loss.",
            _loss_plots(run, thinning),
        ),
        Section(
            "Gained and forgotten",
            "Held-out loss minus the base model's, in nats per loss token (assistant tokens only): "
            "blue is better than the base model, red is worse.",
            _forgetting_plots(run, thinning),
            is_wide=True,
        ),
        Section(
            "Epochs", "Passes over the training rows of each domain so far.", _epoch_plots(run, thinning), is_wide=True
        ),
        Section(
            "Inside the algorithm",
            "What the mixing algorithm believed at each evaluation.",
            _inner_plots(run, thinning),
        ),
        Section(
            "Soft mask",
            "Size of an update by the importance of the neuron that it changes, mean over the run: a mask that acts "
            "makes it fall from left to right.",
            _mask_plots(run),
            is_wide=True,
        ),
        Section(
            "Training",
            "One value per optimizer step; where there are many, their mean, and pale the lowest and the highest.",
            _training_plots(run, thinning),
        ),
    ]
    return with_whole_steps([section for section in sections if section.plots], run.metrics.last_step)


def with_whole_steps(sections: list[Section], last_step: int) -> list[Section]:
    """No fractions of a step on the axes of a run of a few steps."""
    if last_step <= MAX_STEPS_ALL_TICKED:
        for section in sections:
            for plot in section.plots:
                plot.figure.update_xaxes(dtick=1)
    return sections


def layout(height: int, **axes: Any) -> dict[str, Any]:
    """The common layout; `axes` are merged into it."""
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
    """A line of one domain (`group`) or of anything else."""
    settings: dict[str, Any] = {"mode": "lines", "line": {"color": color, "width": 1.8}}
    if len(x) <= MAX_POINTS_WITH_MARKERS:  # a single point is no line
        settings |= {"mode": "lines+markers", "marker": {"size": 4, "color": color}}
    settings |= more
    # Arrays: of a list plotly looks at every number by itself.
    numbers = {"x": np.asarray(x), "y": np.array(y, dtype=np.float64)}
    return go.Scatter(**numbers, name=label(name), legendgroup=group, connectgaps=False, **settings)


def _dotted(color: str, **place: Any) -> dict[str, Any]:
    """A dotted line from edge to edge; plotly's own call for it takes ten times as long."""
    return {"type": "line", "line": {"color": color, "dash": "dot", "width": 1.2}, **place}


def shares_figure(
    run: RunFolder, colors: dict[str, str], height: int = 300, thinning: Thinning = ALL_POINTS
) -> go.Figure:
    """A stacked area of steps; x counts the steps done when a version came into force."""
    weights = run.weights
    kept = {0, len(weights) - 1, *thinning.starts(len(weights)).tolist()}
    weights = [version for index, version in enumerate(weights) if index in kept or version.reason == "operator"]
    x = [version.effective_step - 1 for version in weights]
    end = max(run.metrics.last_step, x[-1] + 1)
    figure = go.Figure(layout=layout(height, yaxis={"range": [0, 1], "tickformat": ".0%", "hoverformat": ".1%"}))
    for domain in (name for name in run.domains if name in weights[-1].shares):  # the others are only measured
        color = colors[domain]
        y = [version.shares.get(domain, 0.0) for version in weights]
        area = {"mode": "lines", "line": {"color": color, "width": 0.5, "shape": "hv"}, "stackgroup": "shares"}
        figure.add_trace(line([*x, end], [*y, y[-1]], domain, color, domain, **area))
    asked = [version.effective_step - 1 for version in weights if version.reason == "operator"][-MAX_OPERATOR_LINES:]
    figure.update_layout(
        shapes=[_dotted(NEUTRAL, xref="x", yref="y domain", x0=step, x1=step, y0=0, y1=1) for step in asked],
        xaxis_range=[x[0], end],
    )
    return figure


def _loss_plots(run: RunFolder, thinning: Thinning) -> list[Plot]:
    steps, losses = evaluation_losses(run)
    base = base_losses(run)
    plots = []
    for domain, color in color_by_name(run.domains).items():
        trained = run.metrics.column(f"domain_loss_nats/{domain}")
        x, y = thinning.at_most(MAX_TRAINING_POINTS).means(run.metrics.steps, trained)
        figure = go.Figure(layout=layout(220, yaxis={"hoverformat": ".3f", "range": _range([*losses[domain]], y)}))
        # Markers too: a domain with a small share has single steps between gaps, which a line does not show.
        mode = "lines+markers" if len(run.metrics) <= MAX_TRAINING_POINTS else "lines"
        pale = {"mode": mode, "opacity": 0.35, "line": {"color": color, "width": 1}, "marker": {"size": 2}}
        figure.add_trace(line(x, y, "training", color, domain, **pale))
        evaluated_x, evaluated_y = thinning.means(steps, losses[domain])
        mode = "lines+markers" if len(evaluated_x) <= MAX_POINTS_WITH_MARKERS else "lines"
        marker = {"mode": mode, "marker": {"size": 5, "color": color}}
        figure.add_trace(line(evaluated_x, evaluated_y, "held out", color, domain, **marker))
        if np.isfinite(level := base[domain]):
            figure.update_layout(shapes=[_dotted(color, xref="x domain", yref="y", x0=0, x1=1, y0=level, y1=level)])
        if np.isfinite(losses[domain]).any() or any(value is not None for value in y):
            plots.append(Plot(domain, figure, color, domain))
    return plots


def _range(evaluated: Sequence[float], trained: Sequence[float | None]) -> list[float] | None:
    """Everything that was evaluated, and the training loss without its outliers."""
    values = [value for value in evaluated if np.isfinite(value)]
    finite = np.array([value for value in trained if value is not None])
    if finite.size:
        values += np.quantile(finite, [0.02, 0.98]).tolist()
    if not values:
        return None
    margin = 0.06 * (max(values) - min(values)) or 0.05
    return [min(values) - margin, max(values) + margin]


def _forgetting_plots(run: RunFolder, thinning: Thinning) -> list[Plot]:
    steps, losses = evaluation_losses(run)
    base = base_losses(run)
    change_DE = np.array([losses[domain] - base[domain] for domain in run.domains])
    if len(steps) < 2 or not np.isfinite(change_DE).any():
        return []
    thinned = [thinning.means(steps, row) for row in change_DE]
    limit = max(float(np.nanmax(np.abs(change_DE))), 0.01)
    figure = go.Figure(layout=layout(60 + 30 * len(run.domains)))
    names = [label(domain) for domain in run.domains]
    heatmap = go.Heatmap(
        x=thinned[0][0],
        y=list(range(len(names))),
        z=np.array([row for _, row in thinned], dtype=np.float64),
        zmin=-limit,
        zmax=limit,
        customdata=np.repeat([names], len(thinned[0][0]), axis=0).T,
        hovertemplate="%{customdata}, step %{x:,}: %{z:+.3f} nats<extra></extra>",
        texttemplate="%{z:+.2f}" if len(steps) <= MAX_CELLS_WITH_NUMBERS else None,
        xgap=1 if len(steps) <= 100 else 0,
        ygap=2,
        colorbar={"thickness": 8, "outlinewidth": 0, "tickformat": "+.2f", "nticks": 5},
        meta="diverging",
    )
    figure.add_trace(heatmap)
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, autorange="reversed")
    figure.update_yaxes(showgrid=False, ticks="")
    figure.update_xaxes(showgrid=False, rangemode="normal", ticks="")
    figure.update_layout(hovermode="closest")
    return [Plot("", figure)]


def _epoch_plots(run: RunFolder, thinning: Thinning) -> list[Plot]:
    figure = go.Figure(layout=layout(240, yaxis={"rangemode": "tozero", "hoverformat": ".2f"}))
    for domain, color in color_by_name(run.domains).items():
        x, y = thinning.means(run.metrics.steps, run.metrics.column(f"epochs/{domain}"))
        figure.add_trace(line(x, y, domain, color, domain))
    return [Plot("", figure)] if len(run.metrics) else []


def _inner_plots(run: RunFolder, thinning: Thinning) -> list[Plot]:
    colors = color_by_name(run.domains)
    figures: dict[str, go.Figure] = {}
    for key in run.mixing.keys:
        column, name = run.mixing.column(key), key.removeprefix("values/")
        if name == key or not np.isfinite(column).any():
            continue
        quantity, _, domain = name.partition("/")
        x, y = thinning.means(run.mixing.steps, column)
        figure = figures.setdefault(quantity, go.Figure(layout=layout(200, yaxis={"hoverformat": ".4~g"})))
        group = domain if domain in colors else None
        figure.add_trace(line(x, y, domain or quantity, colors.get(domain, NEUTRAL), group))
    return [Plot(quantity, figure) for quantity, figure in figures.items()]


def _mask_plots(run: RunFolder) -> list[Plot]:
    prefix = "mask/mean_update/"
    bins = sorted(key for key in run.metrics.keys if key.startswith(prefix))
    means = {key.removeprefix(prefix): run.metrics.column(key) for key in bins}
    means = {name: column[np.isfinite(column)] for name, column in means.items()}
    heights = {name: float(column.mean()) for name, column in means.items() if column.size}
    if not heights:
        return []
    figure = go.Figure(layout=layout(200, xaxis={"type": "category"}, yaxis={"hoverformat": ".2~e"}))
    figure.add_trace(go.Bar(x=[f"from {name}" for name in heights], y=list(heights.values()), marker_color=NEUTRAL))
    return [Plot("", figure)]


def _training_plots(run: RunFolder, thinning: Thinning) -> list[Plot]:
    quantities = {
        "loss_nats": ("Training loss, nats per loss token", ".3f"),
        "learning_rate": ("Learning rate", ".1~e"),
        "tokens_per_second": ("Tokens per second", ",.0f"),
        "grad_norm": ("Gradient norm", ".3~g"),
        "seconds": ("Seconds per step", ".2~f"),
    }
    plots = []
    for key, (title, number_format) in quantities.items():
        column: NDArray[np.float64] = run.metrics.column(key)
        if np.isfinite(column).any():
            x, y = thinning.means(run.metrics.steps, column)
            ticks = {"tickformat": number_format} if key == "learning_rate" else {}
            figure = go.Figure(layout=layout(170, yaxis={"hoverformat": number_format} | ticks))
            figure.add_trace(line(x, y, title, NEUTRAL, line={"color": NEUTRAL, "width": 1.2}))
            figure.add_traces(_band(x, thinning.extremes(column)))
            plots.append(Plot(title, figure))
    return plots


def _band(x: Sequence[float], extremes: tuple[list[float | None], list[float | None]] | None) -> list[go.Scatter]:
    """What the mean of many lines hides: the lowest and the highest of them."""
    if extremes is None:
        return []
    edge: dict[str, Any] = {"mode": "lines", "line": {"color": NEUTRAL, "width": 0}, "hoverinfo": "skip"}
    fills: tuple[dict[str, Any], ...] = ({}, {"fill": "tonexty", "fillcolor": "rgba(127,142,163,0.25)"})
    return [
        line(x, y, name, NEUTRAL, **edge, **fill)
        for y, name, fill in zip(extremes, ("lowest", "highest"), fills, strict=True)
    ]
