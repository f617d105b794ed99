"""The page of a study: curves per ability, where mixing stops helping, the trade-off of the strategies, and a table."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from orchestrator.config.sections import GRIDS, STRATEGIES, StudyConfig
from orchestrator.sweeps.stages import CAVEATS
from orchestrator.sweeps.study.curves import (
    Array,
    Crossing,
    Points,
    draw_seeds,
    interval,
    load_points,
    locate_crossing,
    mean_points,
    pareto_set,
)
from orchestrator.sweeps.study.grid import format_fraction
from orchestrator.sweeps.study.results import ResultRow
from orchestrator.views.format import COLORS, color_by_name, format_count, format_loss
from orchestrator.views.report.figures import NEUTRAL, Plot, Section, label, layout, line
from orchestrator.views.report.html import render_page, write_page
from orchestrator.views.table import Cell, Column, ResultTable, Row, columns_of

_LOSS = "Held-out loss in nats per loss token, lower is better; bands and bars are 95 % bootstrap intervals"
_ONE_SEED = "One seed: the intervals cover evaluation rows only, not training noise."
SERIES_COLORS: dict[str, str] = dict(zip(GRIDS, COLORS, strict=False))


def write_study_page(output: Path, name: str, study: StudyConfig, rows: Sequence[ResultRow], num_cells: int) -> None:
    """Write the page of a study as far as it has come: `rows` are the results of its `num_cells` cells so far."""
    rng = np.random.default_rng(0)
    seeds_NS = draw_seeds(len(study.seeds), study.num_resamples, rng)
    domains = [*study.specialised, *study.general]
    loaded = {domain: load_points(rows, domain, seeds_NS, rng) for domain in domains}
    points = {domain: found for domain, found in loaded.items() if found is not None}
    crossings = {domain: found for domain, of in points.items() if (found := _single_against_mix(of)) is not None}
    sections = [
        Section(
            "Single source against mixture",
            f"Over the fraction k of the data. {_LOSS}. The dotted line is where mixing stops helping.",
            [Plot(name, curves_figure(of, ("single", "mix"), crossings.get(name))) for name, of in points.items()],
        ),
        Section(
            "What each ability owes to its own data",
            f"fixed_general: all specialised data, k general. fixed_special: all general data, k specialised. "
            f"small_general: {format_fraction(study.small_fraction)} general, k specialised. {_LOSS}.",
            [Plot(name, curves_figure(of, GRIDS[2:], None)) for name, of in points.items()],
        ),
        Section(
            "Specialised against general ability",
            f"Mean over the specialised and over the general domains. {_LOSS}. Ringed: no other is better in both.",
            [Plot("", figure)] if (figure := trade_off_figure(points, study)) else [],
            is_wide=True,
        ),
    ]
    shown = table(rows, study)
    page = render_page(
        "study.html",
        [section for section in sections if any(plot.figure.data for plot in section.plots)],
        shown.caveats,
        title=name,
        study=study,
        domain_colors={},
        num_cells=num_cells,
        num_done=len(rows),
        table=shown,
        facts={
            "Cells": f"{len(rows)} of {num_cells}",
            "Trainings": f"{len({folder for row in rows for folder in row.folders})}",
            "Seeds": f"{len(study.seeds)}",
            "Budget": _budget(study),
        },
        series_colors=SERIES_COLORS,
        crossings={domain: describe_crossing(crossing) for domain, crossing in crossings.items()},
    )
    write_page(output, page)


def table(rows: Sequence[ResultRow], study: StudyConfig) -> ResultTable:
    """A row for each cell that is done: amounts, and of each domain what it loses and what was forgotten of it."""
    order = [*GRIDS, *STRATEGIES]
    rows = sorted(rows, key=lambda row: (order.index(row.group), row.subject, row.k, row.seed))
    plain = [(format_fraction(row.k), str(row.seed), str(row.num_stages)) for row in rows]
    counted = [map(format_count, (row.steps, row.num_rows, row.num_tokens)) for row in rows]
    amounts = [[*first, *rest] for first, rest in zip(plain, counted, strict=True)]
    columns = columns_of(("k", "seed", "stages", "steps", "rows", "tokens"), amounts)
    for domain, color in color_by_name([*study.specialised, *study.general]).items():
        losses = [Cell(format_loss(row.loss_nats.get(domain))) for row in rows]
        forgotten = [Cell(format_loss(row.forgotten_nats.get(domain))) for row in rows]
        columns += [Column(domain, losses, color=color), Column("forgotten", forgotten)]
    return ResultTable(
        "Cell",
        [Row(f"{row.group} {row.subject}" if row.group == "single" else row.group) for row in rows],
        columns,
        explanation="Loss in nats per loss token on held-out rows at the end of the last stage; forgotten: minus that "
        "of the single run on all of the domain's data. Steps, rows and tokens are of all stages together.",
        caveats=[*([_ONE_SEED] if len(study.seeds) == 1 else []), *CAVEATS],
    )


def _budget(study: StudyConfig) -> str:
    for key, unit in (("epochs", "epochs a stage"), ("max_steps", "steps a cell"), ("max_tokens", "tokens a cell")):
        if (amount := getattr(study, key)) is not None:
            return f"{amount:,} {unit}"
    return "as in training"


def describe_crossing(crossing: Crossing) -> str:
    """A sentence for the page."""
    share = f"{crossing.fraction_crossing:.0%} of the resamples cross"
    if crossing.x is None:
        return f"the curves do not cross ({share})"
    text = f"mixing changes sides at k = {2**crossing.x:.3g}"
    if math.isfinite(crossing.low):
        text += f", 95 % interval {2**crossing.low:.3g} to {2**crossing.high:.3g}"
    if crossing.num_crossings > 1:
        text += f", and again {crossing.num_crossings - 1} more: the curves are too close to tell"
    return f"{text} ({share})"


def _single_against_mix(points: Points) -> Crossing | None:
    """Where mix minus single changes its sign; None with fewer than two common k."""
    ks, single = points.of("single")
    mix_ks, mix = points.of("mix")
    common = [k for k in ks if k in mix_ks]
    if len(common) < 2:
        return None
    a, b = ([places[of.index(k)] for k in common] for of, places in ((mix_ks, mix), (ks, single)))
    difference_NP = points.resampled_NP[:, a] - points.resampled_NP[:, b]
    return locate_crossing(np.log2(common), points.loss_P[a] - points.loss_P[b], difference_NP)


def curves_figure(points: Points, groups: Sequence[str], crossing: Crossing | None) -> go.Figure:
    """One domain's loss over log2 k, a line with its band for each group that has points."""
    all_ks = sorted({k for _, k in points.keys if k > 0})
    ticks = {"tickvals": [math.log2(k) for k in all_ks], "ticktext": [format_fraction(k) for k in all_ks]}
    axes = {"xaxis": ticks | {"rangemode": "normal"}, "yaxis": {"tickformat": ".3~f"}}
    figure = go.Figure(layout=layout(250, **axes) | {"hovermode": "closest"})
    for group in groups:
        ks, places = points.of(group)
        if not ks:
            continue
        x, color = [math.log2(k) for k in ks], SERIES_COLORS[group]
        bounds = [interval(column) for column in points.resampled_NP[:, places].T]
        band = [low for low, _ in bounds] + [high for _, high in reversed(bounds)]
        area = {"fill": "toself", "fillcolor": color, "opacity": 0.18, "mode": "none", "hoverinfo": "skip"}
        figure.add_trace(go.Scatter(x=x + x[::-1], y=band, **area))
        more: dict[str, Any] = {
            "text": [format_fraction(k) for k in ks],
            "hovertemplate": "%{fullData.name}, k = %{text}: %{y:.3f}<extra></extra>",
            "mode": "lines+markers",
            "marker": {"size": 5, "color": color},
        }
        figure.add_trace(line(x, points.loss_P[places].tolist(), group, color, **more))
    if crossing is not None and crossing.x is not None:
        figure.add_vline(x=crossing.x, line={"color": NEUTRAL, "dash": "dot", "width": 1.2})
    return figure


def trade_off_figure(points: Mapping[str, Points], study: StudyConfig) -> go.Figure | None:
    """Strategies by their mean loss on specialised and on general domains, with a pale line through the points of dmt;
    None while a domain has no result."""
    if not all(domain in points for domain in (*study.specialised, *study.general)):
        return None
    special, general = mean_points(points, study.specialised), mean_points(points, study.general)
    keys = [key for key in special.keys if key[0] in STRATEGIES and key in general.keys]
    if not keys:
        return None
    columns_P = [special.keys.index(key) for key in keys], [general.keys.index(key) for key in keys]
    x_P, y_P = special.loss_P[columns_P[0]], general.loss_P[columns_P[1]]
    x_NP, y_NP = special.resampled_NP[:, columns_P[0]], general.resampled_NP[:, columns_P[1]]
    axes = {
        "xaxis": {"title": "mean loss, specialised", "rangemode": "normal", "tickformat": ".3~f"},
        "yaxis": {"title": "mean loss, general", "tickformat": ".3~f"},
    }
    more: dict[str, Any] = {"hovermode": "closest", "margin": {"l": 60, "r": 20, "t": 12, "b": 46}}
    figure = go.Figure(layout=layout(400, **axes) | more)
    path = sorted((place for place, key in enumerate(keys) if key[0] == "dmt"), key=lambda place: keys[place][1])
    pale: dict[str, Any] = {"mode": "lines", "line": {"color": NEUTRAL, "width": 1, "dash": "dot"}, "hoverinfo": "skip"}
    figure.add_trace(line(x_P[path].tolist(), y_P[path].tolist(), "", NEUTRAL, **pale))
    best = pareto_set(list(zip(x_P, y_P, strict=True)))
    for place, (name, k) in enumerate(keys):
        color = COLORS[STRATEGIES.index(name) % len(COLORS)]
        text = label(f"dmt {format_fraction(k)}" if name == "dmt" else name.replace("_", " "))
        point: dict[str, Any] = {
            "text": [text],
            "hovertemplate": "%{text}: specialised %{x:.3f}, general %{y:.3f}<extra></extra>",
            "mode": "markers+text",
            "textposition": "top right",
            "marker": {"size": 10, "color": color, "line": {"width": 3 if place in best else 0, "color": NEUTRAL}},
            "error_x": _bars(x_P[place], x_NP[:, place], color),
            "error_y": _bars(y_P[place], y_NP[:, place], color),
        }
        figure.add_trace(line([x_P[place]], [y_P[place]], text, color, **point))
    return figure


def _bars(value: float, resampled_N: Array, color: str) -> dict[str, Any]:
    low, high = interval(resampled_N)
    width = {"symmetric": False, "array": [high - value], "arrayminus": [value - low]}
    return {"type": "data", "color": color, "thickness": 1, "width": 0} | width
