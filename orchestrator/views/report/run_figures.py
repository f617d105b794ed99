"""The sections of the page of a run: its benchmarks, its plots, and the table of data.json."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from orchestrator.runs.folder import RunFolder
from orchestrator.runs.loss_errors import change_errors, evaluation_errors
from orchestrator.runs.records import DomainCounts
from orchestrator.runs.summary import base_losses, evaluation_losses
from orchestrator.views.format import color_by_name, format_count, format_error
from orchestrator.views.report.benchmarks import benchmark_sections
from orchestrator.views.report.figures import (
    ALL_POINTS,
    LOSS_NOTE,
    MAX_POINTS_WITH_MARKERS,
    NEUTRAL,
    Plot,
    Section,
    Thinning,
    dotted,
    label,
    layout,
    line,
    shares_figure,
    with_whole_steps,
)
from orchestrator.views.table import Cell, Column, ResultTable, Row
from workers.validation.loss_statistics import CLEAR, is_clear

MAX_TRAINING_POINTS = 400  # a small plot: more would be a solid block
MAX_CELLS_WITH_NUMBERS = 8
_DATA: dict[str, Callable[[DomainCounts], str]] = {
    "Rows read": lambda counts: format_count(counts.report.num_rows),
    "Cannot be used": lambda counts: format_count(counts.report.num_bad_rows),
    "Excluded": lambda counts: format_count(counts.report.num_excluded),
    "Not chosen": lambda counts: format_count(counts.report.num_not_chosen),
    "Too long": lambda counts: format_count(counts.report.num_too_long),
    "Tokens cut": lambda counts: format_count(counts.report.num_tokens_cut),
    "Targets cut": lambda counts: format_count(counts.report.num_targets_cut),
    "Dropped by the template": lambda counts: (
        ", ".join(f"{word} {num:,}" for word, num in counts.report.dropped.items()) or "0"
    ),
    "Trained examples": lambda counts: format_count(counts.train.num_examples if counts.train else None),
    "Repeats": lambda counts: format_count(counts.train.num_repeats if counts.train else None),
    "Held-out prompts": lambda counts: format_count(counts.eval.num_prompts),
}
_NOTE = (
    "All rows read for a domain, and the rows and tokens that were left out. Too long: longer than "
    "data.max_length, however they were handled. Repeats: trained examples equal to another in the domain. Of "
    "these in training data: held-out prompts that this or another domain trains on. The events below report the "
    "same in sentences."
)


def run_sections(run: RunFolder, thinning: Thinning = ALL_POINTS) -> list[Section]:
    sections = [
        Section(
            "Shares over time",
            "Share of each domain in the mixture; a version applies until the next, and a dotted line marks one set by "
            "a user. The horizontal axis of every plot counts optimizer steps.",
            [Plot("", shares_figure(run, color_by_name(run.domains), thinning=thinning))] if run.weights else [],
            is_wide=True,
        ),
        Section(
            "Loss per domain",
            f"{LOSS_NOTE}: points are evaluations, the dotted line is the base model, the pale line is training loss. "
            "The band is two standard errors to each side, over the held-out examples, if they were recorded.",
            _loss_plots(run, thinning),
        ),
        Section(
            "Gained and forgotten",
            "Held-out loss minus the base model's, in nats per loss token (assistant tokens only): blue is better than "
            "the base model, red is worse; a number in brackets is less than two standard errors of the difference, "
            "which is paired over the examples.",
            _forgetting_plots(run, thinning),
            is_wide=True,
        ),
        Section(
            "Epochs", "Passes over the training data of each domain so far.", _epoch_plots(run, thinning), is_wide=True
        ),
        Section(
            "Inside the algorithm",
            "Internal values of the mixing algorithm at each evaluation.",
            _inner_plots(run, thinning),
        ),
        Section(
            "Soft mask",
            "Mean size of an update over the run, by the importance of the neuron that it changes: with an effective "
            "mask it falls from left to right.",
            _mask_plots(run),
            is_wide=True,
        ),
        Section(
            "Training",
            "One value per optimizer step; if there are many, their mean, with the lowest and the highest in pale.",
            _training_plots(run, thinning),
        ),
    ]
    plotted = with_whole_steps([section for section in sections if section.plots], run.metrics.last_step)
    return [*benchmark_sections([run]), *plotted, *data_sections(run)]


def _loss_plots(run: RunFolder, thinning: Thinning) -> list[Plot]:
    steps, losses = evaluation_losses(run)
    base = base_losses(run)
    plots = []
    for domain, color in color_by_name(run.domains).items():
        trained = run.metrics.column(f"domain_loss_nats/{domain}")
        x, y = thinning.at_most(MAX_TRAINING_POINTS).means(run.metrics.steps, trained)
        figure = go.Figure(layout=layout(220, yaxis={"hoverformat": ".3f", "range": _range([*losses[domain]], y)}))
        # With markers: a domain with a small share has single steps between gaps, which a line does not show.
        mode = "lines+markers" if len(run.metrics) <= MAX_TRAINING_POINTS else "lines"
        pale = {"mode": mode, "opacity": 0.35, "line": {"color": color, "width": 1}, "marker": {"size": 2}}
        figure.add_trace(line(x, y, "training", color, domain, **pale))
        evaluated_x, evaluated_y = thinning.means(steps, losses[domain])
        mode = "lines+markers" if len(evaluated_x) <= MAX_POINTS_WITH_MARKERS else "lines"
        marker = {"mode": mode, "marker": {"size": 5, "color": color}}
        figure.add_trace(line(evaluated_x, evaluated_y, "held out", color, domain, **marker))
        figure.add_traces(_error_band(steps, losses[domain], evaluation_errors(run, domain), color, thinning))
        if np.isfinite(level := base[domain]):
            figure.update_layout(shapes=[dotted(color, xref="x domain", yref="y", x0=0, x1=1, y0=level, y1=level)])
        if np.isfinite(losses[domain]).any() or any(value is not None for value in y):
            plots.append(Plot(domain, figure, color, domain))
    return plots


def _error_band(
    steps: NDArray[np.int64], losses: NDArray[np.float64], errors: NDArray[np.float64], color: str, thinning: Thinning
) -> list[go.Scatter]:
    """A band of two standard errors to each side of the loss."""
    if not np.isfinite(losses + errors).any():
        return []
    x, low = thinning.means(steps, losses - CLEAR * errors)
    _, high = thinning.means(steps, losses + CLEAR * errors)
    return _band(x, {"two errors less": low, "two errors more": high}, color, 0.18)


def _band(x: Sequence[float], edges: Mapping[str, list[float | None]], color: str, opacity: float) -> list[go.Scatter]:
    """The area between the lower and the upper edge, in a translucent colour of the palette (#rrggbb)."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    edge: dict[str, Any] = {"mode": "lines", "line": {"color": color, "width": 0}, "hoverinfo": "skip"}
    fills: list[dict[str, Any]] = [{}, {"fill": "tonexty", "fillcolor": f"rgba({red},{green},{blue},{opacity})"}]
    return [line(x, y, name, color, **edge, **fill) for (name, y), fill in zip(edges.items(), fills, strict=True)]


def _range(evaluated: Sequence[float], trained: Sequence[float | None]) -> list[float] | None:
    """A range for all evaluations, and for the training loss without outliers."""
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
    errors_DE = np.array([thinning.means(steps, change_errors(run, domain))[1] for domain in run.domains], dtype=float)
    shown_DE = np.array([row for _, row in thinned], dtype=np.float64)
    names = [label(domain) for domain in run.domains]
    told_DE = _by_cell(lambda change, error: f"{change:+.3f}{format_error(error)}", shown_DE, errors_DE)
    heatmap = go.Heatmap(
        x=thinned[0][0],
        y=list(range(len(names))),
        z=shown_DE,
        zmin=-limit,
        zmax=limit,
        customdata=[[[name, told] for told in of_domain] for name, of_domain in zip(names, told_DE, strict=True)],
        hovertemplate="%{customdata[0]}, step %{x:,}: %{customdata[1]} nats<extra></extra>",
        text=_by_cell(_cell, shown_DE, errors_DE),
        texttemplate="%{text}" if len(steps) <= MAX_CELLS_WITH_NUMBERS else None,
        xgap=1 if len(steps) <= 100 else 0,
        ygap=2,
        colorbar={"thickness": 8, "outlinewidth": 0, "tickformat": "+.2f", "nticks": 5},
        meta="diverging",
    )
    figure = go.Figure(heatmap, layout(60 + 30 * len(names)))
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=names, autorange="reversed")
    figure.update_yaxes(showgrid=False, ticks="")
    figure.update_xaxes(showgrid=False, rangemode="normal", ticks="")
    figure.update_layout(hovermode="closest")
    return [Plot("", figure)]


def _by_cell(
    word: Callable[[float, float], str], change_DE: NDArray[np.float64], error_DE: NDArray[np.float64]
) -> list[list[str]]:
    return [[word(*cell) for cell in zip(*rows, strict=True)] for rows in zip(change_DE, error_DE, strict=True)]


def _cell(change: float, error: float) -> str:
    """The number in a cell; in brackets if it is not clearly different from zero."""
    text = "" if np.isnan(change) else f"{change:+.2f}"
    return f"({text})" if text and np.isfinite(error) and not is_clear(change, error) else text


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
            if extremes := thinning.extremes(column):  # what the mean of many steps hides
                figure.add_traces(_band(x, dict(zip(("lowest", "highest"), extremes, strict=True)), NEUTRAL, 0.25))
            plots.append(Plot(title, figure))
    return plots


def data_sections(run: RunFolder) -> list[Section]:
    if run.data is None:
        return []
    every = run.data.domains.values()
    leaks = [
        Cell(format_count(counts.num_leaked_prompts), style="worse" if counts.num_leaked_prompts else "same")
        for counts in every
    ]
    columns = [Column(heading, [Cell(of(counts)) for counts in every]) for heading, of in _DATA.items()]
    rows = [Row(name, "" if counts.train else "only measured") for name, counts in run.data.domains.items()]
    table = ResultTable("Domain", rows, [*columns, Column("Of these in training data", leaks)])
    return [Section("Data", _NOTE, table=table)]
