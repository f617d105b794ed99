"""compare.html: the table, every seed of every variant, and the course of the held-out losses."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from orchestrator.runs.folder import read_run
from orchestrator.runs.summary import evaluation_losses, summarise
from orchestrator.sweeps.compare.results import ELSEWHERE, MEAN, TARGET_GAIN, WORST, Comparison
from orchestrator.sweeps.compare.table import failures, table
from orchestrator.views.palette import color_by_name, color_by_run
from orchestrator.views.report.comparison import Course, loss_section, remark_on
from orchestrator.views.report.figures import LOSS_NOTE, Plot, Section, dots, layout
from orchestrator.views.report.html import write_table_page
from orchestrator.views.report.series import label
from orchestrator.views.table import Remark
from orchestrator.views.verdict import HARMFUL

_PLOTTED = {
    MEAN: "Mean of the domains",
    WORST: "Worst domain",
    TARGET_GAIN: "Gain of the target",
    ELSEWHERE: "Change of the other domains",
}


def write_comparison(comparison: Comparison, output: Path) -> None:
    shown = replace(table(comparison), remarks=[*_verdicts(comparison), *failures(comparison)])
    colors = color_by_run(comparison.variants)
    sections = [*_seed_sections(comparison, colors), *_course_sections(comparison, colors)]
    title = f"{comparison.name}: {len(comparison.variants)} variants compared"
    write_table_page(output, title, shown, sections, comparison.domains)


def _verdicts(comparison: Comparison) -> list[Remark]:
    """What came of each run that ended with harm, or with some domains worse than they began."""
    remarks = []
    for name, result in comparison.variants.items():
        for each in result.runs:
            if each.verdict in HARMFUL or each.verdict == "mixed":
                run = read_run(each.folder)
                remarks.append(remark_on(f"{name}, seed {each.seed}", run, summarise(run)))
    return remarks


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
        figure.add_trace(dots(values, [row] * len(values), name, color, size=5, opacity=0.45))
        mean = result.means[measure]
        full = dots([mean.mean], [row], name, color, size=9)
        full.error_x = {"array": [mean.half_width or 0.0], "color": color, "thickness": 1.5, "width": 4}
        figure.add_trace(full)
    return figure


def _course_sections(comparison: Comparison, colors: Mapping[str, str]) -> list[Section]:
    courses = {name: course for name in comparison.variants if (course := _mean_course(comparison, name)) is not None}
    note = f"{LOSS_NOTE}; a line for each variant, the mean over its seeds, step 0 is the base model."
    return [loss_section(courses, colors, color_by_name(comparison.domains), note)] if courses else []


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
