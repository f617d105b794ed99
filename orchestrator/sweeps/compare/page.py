"""compare.html: the table, every seed of every variant, and the course of the held-out losses."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from orchestrator.runs.folder import read_run
from orchestrator.runs.summary import evaluation_losses, summarise
from orchestrator.sweeps.compare import CAVEATS
from orchestrator.sweeps.compare.results import ELSEWHERE, MEAN, TARGET_GAIN, WORST, Comparison
from orchestrator.sweeps.compare.table import (
    amount_columns,
    domain_columns,
    loss_columns,
    lowest,
    notes,
    target_columns,
)
from orchestrator.views.palette import color_by_name
from orchestrator.views.report.comparison import RUN_COLORS, Cell
from orchestrator.views.report.comparison import Comparison as Columns
from orchestrator.views.report.figures import LOSS_NOTE, Plot, Section, layout, line
from orchestrator.views.report.html import render_page, write_page
from orchestrator.views.report.series import gaps, label
from orchestrator.views.verdict import HARMFUL, verdict_lines

_PLOTTED = {
    MEAN: "Mean of the domains",
    WORST: "Worst domain",
    TARGET_GAIN: "Gain of the target",
    ELSEWHERE: "Change of the other domains",
}


def write_comparison(comparison: Comparison, output: Path) -> None:
    """Write the page."""
    colors = variant_colors(comparison)
    domains = color_by_name(comparison.domains)
    best = {"mean loss": MEAN, "worst loss": WORST} | {name: f"loss_nats/{name}" for name in comparison.domains}
    columns = {
        heading: [
            Cell(text, is_best=heading in best and lowest(comparison, best[heading]) == variant)
            for variant, text in zip(comparison.variants, cells, strict=True)
        ]
        for columns_of in (loss_columns, target_columns, amount_columns, domain_columns)
        for heading, cells in columns_of(comparison).items()
    }
    page = render_page(
        "comparison.html",
        [*_seed_sections(comparison, colors), *_course_sections(comparison, colors, domains)],
        [*CAVEATS, *(f"Failed: {name}: {why}" for name, why in comparison.failed.items())],
        note=" ".join(notes(comparison)),
        title=f"{comparison.name}: {len(comparison.variants)} variants compared",
        comparison=Columns(
            list(comparison.variants), columns, harmful=_harmful(comparison), verdicts=_verdicts(comparison)
        ),
        run_colors=colors,
        domain_colors=domains,
    )
    write_page(output, page)


def _harmful(comparison: Comparison) -> frozenset[str]:
    return frozenset(
        f"{name}, seed {each.seed}"
        for name, result in comparison.variants.items()
        for each in result.runs
        if each.verdict in HARMFUL
    )


def _verdicts(comparison: Comparison) -> dict[str, list[str]]:
    """Run of a variant that ended with harm, or with some domains worse than they began -> what came of it."""
    told = {}
    for name, result in comparison.variants.items():
        for each in result.runs:
            if each.verdict not in HARMFUL and each.verdict != "mixed":
                continue
            run = read_run(each.folder)
            told[f"{name}, seed {each.seed}"] = verdict_lines(run, summarise(run))
    return told


def variant_colors(comparison: Comparison) -> dict[str, str]:
    """The colour of each variant, by label."""
    return {name: RUN_COLORS[index % len(RUN_COLORS)] for index, name in enumerate(comparison.variants)}


def _seed_sections(comparison: Comparison, colors: Mapping[str, str]) -> list[Section]:
    measured = {name for result in comparison.variants.values() for name in result.means}
    plots = [
        Plot(title, _seeds_figure(comparison, measure, colors))
        for measure, title in _PLOTTED.items()
        if measure in measured
    ]
    note = (
        "Nats per loss token at the end of training: a pale point for each seed, a full one for their mean with its "
        f"interval. The columns against {comparison.baseline} pair the seeds, which often makes intervals narrower."
    )
    return [Section("Variants", note, plots, is_wide=len(comparison.variants) > 8)] if plots else []


def _seeds_figure(comparison: Comparison, measure: str, colors: Mapping[str, str]) -> go.Figure:
    names = [name for name, result in comparison.variants.items() if measure in result.means]
    axis = {"tickvals": list(range(len(names))), "ticktext": [label(name) for name in names], "autorange": "reversed"}
    more = {"xaxis": {"rangemode": "normal", "tickformat": ".4~f", "hoverformat": ".3f"}, "yaxis": axis}
    figure = go.Figure(layout=layout(50 + 26 * len(names), **more) | {"hovermode": "closest"})
    for row, name in enumerate(names):
        result, color = comparison.variants[name], colors[name]
        values = [run.values[measure] for run in result.runs if measure in run.values]
        dots: dict[str, Any] = {"mode": "markers", "marker": {"size": 5, "color": color, "opacity": 0.45}}
        figure.add_trace(line(values, [row] * len(values), name, color, **dots))
        mean = result.means[measure]
        full: dict[str, Any] = {
            "mode": "markers",
            "marker": {"size": 9, "color": color},
            "error_x": {"array": [mean.half_width or 0.0], "color": color, "thickness": 1.5, "width": 4},
        }
        figure.add_trace(line([mean.mean], [row], name, color, **full))
    return figure


def _course_sections(comparison: Comparison, colors: Mapping[str, str], domains: Mapping[str, str]) -> list[Section]:
    courses = {name: course for name in comparison.variants if (course := _mean_course(comparison, name)) is not None}
    if not courses:
        return []
    plots = [Plot("Mean of the domains", _overlay(courses, None, colors))]
    plots += [Plot(name, _overlay(courses, name, colors), color, name) for name, color in domains.items()]
    note = f"{LOSS_NOTE}; a line for each variant, the mean over its seeds, step 0 is the base model."
    return [Section("Loss per domain", note, plots)]


Course = tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]


def _mean_course(comparison: Comparison, name: str) -> Course | None:
    """Steps and losses by domain, averaged over the seeds; None where the runs were not measured at the same steps."""
    courses = []
    for result in comparison.variants[name].runs:
        run = read_run(result.folder)
        courses.append(evaluation_losses(run))
    if not courses or not len(courses[0][0]) or any(not np.array_equal(courses[0][0], c[0]) for c in courses):
        return None
    steps = courses[0][0]
    return steps, {domain: np.mean([losses[domain] for _, losses in courses], axis=0) for domain in comparison.domains}


def _overlay(courses: Mapping[str, Course], domain: str | None, colors: Mapping[str, str]) -> go.Figure:
    figure = go.Figure(layout=layout(230, yaxis={"hoverformat": ".3f"}))
    for name, (steps, losses) in courses.items():
        values = np.mean(list(losses.values()), axis=0) if domain is None else losses[domain]
        figure.add_trace(line(steps.tolist(), gaps(values), name, colors[name]))
    return figure
