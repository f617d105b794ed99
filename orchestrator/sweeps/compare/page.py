"""A comparison as a table, a row for each variant, and as compare.html: every seed, and the courses of the losses."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from orchestrator.runs.folder import read_run
from orchestrator.runs.summary import evaluation_losses, summarise
from orchestrator.sweeps.compare import CAVEATS
from orchestrator.sweeps.compare.results import (
    CONFIDENCE,
    ELSEWHERE,
    EQUAL_TOKENS_TOLERANCE,
    EVALUATION_SECONDS,
    MEAN,
    NUM_TOKENS,
    SIGNAL_SECONDS,
    TARGET_GAIN,
    TRAINING_SECONDS,
    WORST,
    Comparison,
    MeanEstimate,
)
from orchestrator.views.format import (
    NOTHING,
    PLUS_MINUS,
    color_by_name,
    color_by_run,
    format_count,
    format_duration,
    format_error,
)
from orchestrator.views.report.comparison import Course, loss_section, remark_on
from orchestrator.views.report.figures import LOSS_NOTE, Plot, Section, dots, label, layout
from orchestrator.views.report.html import write_table_page
from orchestrator.views.summary import HARMFUL, in_a_word
from orchestrator.views.table import Cell, Column, Remark, ResultTable, Row, best_marked

Estimates = list[MeanEstimate | None]

_WORTH_A_WORD = (*HARMFUL, "mixed")
_PLOTTED = {
    MEAN: "Mean of the domains",
    WORST: "Worst domain",
    TARGET_GAIN: "Gain of the target",
    ELSEWHERE: "Change of the other domains",
}


def table(comparison: Comparison) -> ResultTable:
    """Losses and their differences from the first variant, what became of the target, amounts, and every domain."""
    results = list(comparison.variants.values())

    def means(measure: str) -> Estimates:
        return [result.means.get(measure) for result in results]

    columns = []
    for heading, measure in (("mean loss", MEAN), ("worst loss", WORST)):
        columns.append(Column(heading, _losses(means(measure))))
        differences = [_difference(result.differences.get(measure)) for result in results]
        columns.append(Column(f"{heading} vs {comparison.baseline}", differences))
    if comparison.target is not None:
        for heading, measure in (("target gain", TARGET_GAIN), ("others' change", ELSEWHERE)):
            columns.append(Column(heading, [estimate_cell(mean, "+") for mean in means(measure)], group=1))
    num_seeds = [len(result.runs) for result in results]
    columns.append(Column("seeds", [Cell(str(number), value=number) for number in num_seeds], group=2))
    columns.append(Column("tokens", [_amount(mean, format_count(_mean(mean))) for mean in means(NUM_TOKENS)], group=2))
    seconds = {"training": TRAINING_SECONDS, "evaluations": EVALUATION_SECONDS, "signals": SIGNAL_SECONDS}
    for heading, measure in seconds.items():
        if measure != SIGNAL_SECONDS or any(map(_mean, means(measure))):
            cells = [_amount(mean, format_duration(_mean(mean))) for mean in means(measure)]
            columns.append(Column(heading, cells, group=2))
    for name in comparison.domains:
        cells = [replace(cell, brief=cell.text) for cell in _losses(means(f"loss_nats/{name}"))]
        columns.append(Column(name, cells, group=3))
    return ResultTable(
        "Run",
        [Row(name, color=color) for name, color in color_by_run(comparison.variants).items()],
        columns,
        notes=_notes(comparison),
        remarks=[*_harm(comparison), *failures(comparison)],
        caveats=CAVEATS,
    )


def estimate_cell(estimate: MeanEstimate | None, sign: str = "") -> Cell:
    """A mean over seeds with its interval and its error, in nats; `sign` is "+" for differences."""
    if estimate is None:
        return Cell(NOTHING)
    error = estimate.held_out_error
    return Cell(
        f"{estimate.mean:{sign}.3f}",
        format_error(estimate.half_width) + ("" if error is None else f" [{error:.3f}]"),
        value=estimate.mean,
        half_width=estimate.half_width,
        held_out_error=error,
    )


def failures(comparison: Comparison) -> list[Remark]:
    return [Remark(f"failed: {name}", [why]) for name, why in comparison.failed.items()]


def _losses(estimates: Estimates) -> list[Cell]:
    return best_marked([estimate_cell(estimate) for estimate in estimates], [_mean(estimate) for estimate in estimates])


def _difference(estimate: MeanEstimate | None) -> Cell:
    """It stands out where it is more than its interval."""
    cell = estimate_cell(estimate, "+")
    if estimate is None or not estimate.is_clear:
        return cell
    return replace(cell, style="better" if estimate.mean < 0 else "worse")


def _mean(estimate: MeanEstimate | None) -> float | None:
    return None if estimate is None else estimate.mean


def _amount(estimate: MeanEstimate | None, text: str) -> Cell:
    return Cell(text, value=_mean(estimate))


def _notes(comparison: Comparison) -> list[str]:
    lines = [
        f"Losses in nats per token on held-out rows at the end of training; {PLUS_MINUS} is half a {CONFIDENCE:.0%} t "
        f"interval over seeds, and differences against {comparison.baseline} are paired by seed."
    ]
    if any(estimate.held_out_error is not None for r in comparison.variants.values() for estimate in r.means.values()):
        lines.append(
            "In square brackets: one standard error over the held-out examples, paired for differences. All seeds "
            "share the examples, so the intervals do not include it."
        )
    if comparison.target is not None:
        lines.append(
            f"Target gain: by how much the loss of {comparison.target} fell against the base model; others' change: "
            "mean of the other domains, where more than 0 is forgetting."
        )
    if comparison.token_spread > EQUAL_TOKENS_TOLERANCE:
        lines.append(
            f"The variants saw different numbers of tokens (up to {comparison.token_spread:.1%} apart): "
            "max_tokens (of each stage, in a plan) in place of max_steps brings them within a step of each other."
        )
    return lines


def _harm(comparison: Comparison) -> list[Remark]:
    """Of each variant how many runs ended with harm, or with some domains worse than they began."""
    remarks = []
    for name, result in comparison.variants.items():
        counts = Counter(run.verdict for run in result.runs if run.verdict in _WORTH_A_WORD)
        told = ", ".join(f"{count} of {len(result.runs)} {in_a_word(verdict)}" for verdict, count in counts.items())
        if told:
            line = f"{told}; the page and the summary.json of each run say what and why."
            remarks.append(Remark(name, [line], is_bad=True))
    return remarks


def write_comparison(comparison: Comparison, output: Path) -> None:
    shown = replace(table(comparison), remarks=[*_verdicts(comparison), *failures(comparison)])
    colors = color_by_run(comparison.variants)
    sections = _seed_sections(comparison, colors)
    courses = {name: course for name in comparison.variants if (course := _mean_course(comparison, name)) is not None}
    if courses:
        note = f"{LOSS_NOTE}; a line for each variant, the mean over its seeds, step 0 is the base model."
        sections.append(loss_section(courses, colors, color_by_name(comparison.domains), note))
    title = f"{comparison.name}: {len(comparison.variants)} variants compared"
    write_table_page(output, title, shown, sections, comparison.domains)


def _verdicts(comparison: Comparison) -> list[Remark]:
    """What came of each run that ended with harm, or with some domains worse than they began."""
    remarks = []
    for name, result in comparison.variants.items():
        for each in result.runs:
            if each.verdict in _WORTH_A_WORD:
                run = read_run(each.folder)
                remarks.append(remark_on(f"{name}, seed {each.seed}", run, summarise(run)))
    return remarks


def _seed_sections(comparison: Comparison, colors: Mapping[str, str]) -> list[Section]:
    measured = {name for result in comparison.variants.values() for name in result.means}
    plotted = {title: measure for measure, title in _PLOTTED.items() if measure in measured}
    plots = [Plot(title, _seeds_figure(comparison, measure, colors)) for title, measure in plotted.items()]
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


def _mean_course(comparison: Comparison, name: str) -> Course | None:
    """Steps and losses by domain, averaged over the seeds; None where the runs were not measured at the same steps."""
    courses = [evaluation_losses(read_run(result.folder)) for result in comparison.variants[name].runs]
    if not courses or not len(courses[0][0]) or any(not np.array_equal(courses[0][0], c[0]) for c in courses):
        return None
    steps = courses[0][0]
    return steps, {domain: np.mean([losses[domain] for _, losses in courses], axis=0) for domain in comparison.domains}
