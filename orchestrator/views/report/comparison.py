"""A comparison of several runs: the table and the plots, and the paired differences from the first run."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from rich.console import RenderableType

from orchestrator.runs.benchmark_record import asked_for
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.loss_errors import differences, mean_difference, read_last_losses, run_errors
from orchestrator.runs.records import LossCourse, RunSummary
from orchestrator.runs.summary import evaluation_losses, summarise
from orchestrator.views.format import (
    ERROR_NOTE,
    NOTHING,
    RUN_COLORS,
    color_by_name,
    color_by_run,
    format_change,
    format_count,
    format_duration,
    format_error,
    format_loss,
    format_score,
    format_score_change,
)
from orchestrator.views.report.figures import (
    ALL_POINTS,
    LOSS_NOTE,
    NEUTRAL,
    Plot,
    Point,
    Section,
    Thinning,
    dotted,
    label,
    layout,
    line,
    points_figure,
    shares_figure,
    with_whole_steps,
)
from orchestrator.views.summary import HARMFUL, in_a_word, verdict_lines
from orchestrator.views.table import Cell, Column, Remark, ResultTable, Row, best_marked
from workers.bounded import UnreadableFileError
from workers.contracts import Change
from workers.validation.domain_losses import mean_course
from workers.validation.loss_statistics import CLEAR

_MEAN = "mean of the domains"
Course = tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]
"""Steps, and each domain's loss at them."""
DASHES = ("solid", "dash", "dot", "dashdot")
_EXPLANATION = (
    "Loss in nats per loss token on held-out rows, assistant tokens only; mean and worst are over the run's domains. "
    "The lowest of each column is bold."
)
_BENCHMARKS = " Benchmarks: the result, its standard error, and the change from the base model; the best is bold."


def differences_from_first(runs: Sequence[RunFolder]) -> tuple[list[dict[str, Change]], list[Change | None]]:
    """By run: final loss minus the first run's, over the examples that both measured, of each domain and of their mean.

    Empty for the first run, for runs of older versions, and if no example was measured by both; no mean for a run whose
    domains differ from the first run's.
    """
    first, *others = [read_last_losses(run) for run in runs]
    pairs, names = [{}, *(differences(losses, first) for losses in others)], runs[0].domains
    are_alike = [set(run.domains) == set(names) for run in runs]
    means = [mean_difference(pair, names) if alike else None for pair, alike in zip(pairs, are_alike, strict=True)]
    return pairs, means


def difference_sections(runs: Sequence[RunFolder], colors: Mapping[str, str], domains: Sequence[str]) -> list[Section]:
    """A line for each domain and for their mean, with a point for each run but the first; none without differences."""
    (pairs, means), labels = differences_from_first(runs), list(colors)
    if not any(pairs):
        return []
    rows = {_MEAN: means} | {domain: [pair.get(domain) for pair in pairs] for domain in domains}
    note = (
        f"Final held-out loss minus that of {labels[0]}, in nats per loss token, paired over the examples that "
        "both measured; bars are two standard errors to each side. Left of the line is better."
    )
    legend = {name: colors[name] for name in labels[1:]}
    return [Section(f"Differences from {labels[0]}", note, [Plot("", _figure(rows, legend))], True, legend=legend)]


def _figure(rows: Mapping[str, Sequence[Change | None]], colors: Mapping[str, str]) -> go.Figure:
    points = {
        name: {
            place: Point(change.nats, CLEAR * change.standard_error, [label(row), format_change(change)])
            for place, (row, of_run) in enumerate(rows.items())
            if (change := of_run[index + 1]) is not None
        }
        for index, name in enumerate(colors)
    }
    names = [label(row) for row in rows]
    figure = points_figure(names, points, colors, "%{customdata[0]}: %{customdata[1]}", row_pixels=34)
    figure.update_xaxes(rangemode="normal", tickformat="+.3~f", hoverformat="+.3f")
    zero = dotted(NEUTRAL, xref="x", yref="y domain", x0=0, x1=0, y0=0, y1=1)
    figure.update_layout(shapes=[zero])
    return figure


def load_runs(run_folders: Sequence[Path]) -> list[RunFolder]:
    """The runs as they are now, without files that cannot be used; ValueError if a folder is not that of a run."""
    runs = [RunFolder(folder) for folder in dict.fromkeys(run_folders)]
    for run in runs:
        run.refresh()
        if not (run.config or run.weights or len(run.metrics)):
            for name, reason in run.problems.items():
                raise UnreadableFileError(run.path / name, reason)
            raise ValueError(f"{run.path} is not the folder of a run: no config.json, weights/ or metrics.jsonl in it")
    return runs


def all_domains(runs: Sequence[RunFolder]) -> list[str]:
    return list(dict.fromkeys(domain for run in runs for domain in run.domains))


def runs_table(runs: Sequence[RunFolder]) -> ResultTable:
    results, errors, colors = [summarise(run) for run in runs], [run_errors(run) for run in runs], run_colors(runs)
    (pairs, changes), labels = differences_from_first(runs), list(colors)
    totals = [None if run.summary is not None else run.total_steps for run in runs]
    planned = ["" if total is None else f" of {total:,}" for total in totals]
    means = [(of_run.mean.end, change) for of_run, change in zip(errors, changes, strict=True)]
    columns = [
        Column("algorithm", [Cell(result.mixing_type) for result in results]),
        Column("steps", [Cell(f"{result.steps:,}{of}") for result, of in zip(results, planned, strict=True)]),
        Column("verdict", [Cell(in_a_word(result.verdict)) for result in results]),
        *_course_columns("mean", [result.mean_loss_nats for result in results], means),
        *_course_columns("worst", [result.worst_loss_nats for result in results], [(None, None)] * len(runs)),
    ]
    for domain in all_domains(runs):
        ends = [result.domains[domain].loss_nats_end if domain in result.domains else None for result in results]
        known = [(of_run.of(domain).end, pair.get(domain)) for of_run, pair in zip(errors, pairs, strict=True)]
        columns.append(Column(f"{domain} end", _losses(ends, known)))
    benchmarks = _benchmarks(runs)
    columns += benchmarks
    columns.append(Column("tokens", [Cell(format_count(result.num_tokens)) for result in results]))
    columns.append(Column("time", [Cell(format_duration(result.seconds)) for result in results]))
    paired = f" In brackets: minus {labels[0]}, paired over the examples that both measured." if any(pairs) else ""
    told = zip(labels, runs, results, strict=True)
    return ResultTable(
        "Run",
        [Row(label, color=color) for label, color in colors.items()],
        columns,
        explanation=_EXPLANATION + (_BENCHMARKS if benchmarks else ""),
        notes=[f"{ERROR_NOTE}.{paired}"],
        remarks=[
            *(remark_on(label, run, result) for label, run, result in told if _needs_remark(result)),
            *(_unreadable(label, run) for label, run in zip(labels, runs, strict=True) if run.problems),
        ],
    )


def remark_on(label: str, run: RunFolder, result: RunSummary) -> Remark:
    return Remark(label, verdict_lines(run, result), is_bad=result.verdict in HARMFUL)


def _unreadable(label: str, run: RunFolder) -> Remark:
    files = [f"{name}: {reason}" for name, reason in run.problems.items()]
    return Remark(label, ["Some of its files cannot be used; the rest is shown without them.", *files], is_bad=True)


def _needs_remark(result: RunSummary) -> bool:
    is_over_fitted = any(domain.is_past_lowest for domain in result.domains.values())
    return result.verdict in HARMFUL or result.verdict == "mixed" or is_over_fitted


def _course_columns(
    name: str, courses: Sequence[LossCourse], known: Sequence[tuple[float | None, Change | None]]
) -> list[Column]:
    return [
        Column(f"{name} base", [Cell(format_loss(course.start)) for course in courses]),
        Column(f"{name} best", _losses([course.best for course in courses], [(None, None)] * len(courses))),
        Column(f"{name} end", _losses([course.end for course in courses], known)),
    ]


def _losses(losses: Sequence[float | None], known: Sequence[tuple[float | None, Change | None]]) -> list[Cell]:
    """Losses with their errors and their differences from the first run, if known."""
    cells = [
        Cell(format_loss(loss), format_error(error) + (f" ({format_change(change)})" if change else ""))
        for loss, (error, change) in zip(losses, known, strict=True)
    ]
    return best_marked(cells, losses)


def _benchmarks(runs: Sequence[RunFolder]) -> list[Column]:
    """A column for each metric that any run was evaluated on, with the best result marked."""
    scores = [
        {f"{score.label}: {name}": metric for score in asked_for(run.tasks) for name, metric in score.metrics.items()}
        for run in runs
    ]
    columns = []
    for heading in dict.fromkeys(heading for each in scores for heading in each):
        metrics = [each.get(heading) for each in scores]
        cells = [
            Cell(format_score(metric.result), f" ({format_score_change(metric)})") if metric else Cell(NOTHING)
            for metric in metrics
        ]
        values = [metric.result.value if metric else None for metric in metrics]
        is_higher_better = next(metric for metric in metrics if metric).is_higher_better
        columns.append(Column(heading, best_marked(cells, values, is_higher_better)))
    return columns


def comparison_table(run_folders: Sequence[Path]) -> RenderableType:
    """The comparison for the terminal: a column for each run, so that many domains fit into 80 characters."""
    return runs_table(load_runs(run_folders)).transposed("loss in nats per token").to_rich()


def comparison_sections(runs: Sequence[RunFolder], thinning: Thinning = ALL_POINTS) -> list[Section]:
    """Overlaid held-out losses, one plot for each domain; the shares of each run."""
    loss_note = f"{LOSS_NOTE}; a line for each run, a point for each evaluation; step 0 is the start of the run."
    colors, domain_colors = run_colors(runs), color_by_name(all_domains(runs))
    labelled = dict(zip(colors, runs, strict=True))
    courses = {name: evaluation_losses(run) for name, run in labelled.items()}
    shares = [
        Plot(name, shares_figure(run, domain_colors, 220, thinning)) for name, run in labelled.items() if run.weights
    ]
    last_step = max(run.metrics.last_step for run in runs)
    for plot in shares:
        plot.figure.update_xaxes(range=[0, max(last_step, 1)])
    sections = [
        loss_section(courses, colors, domain_colors, loss_note, thinning),
        Section("Shares over time", "Share of each domain in the mixture, one plot per run.", shares),
    ]
    return [*difference_sections(runs, colors, list(domain_colors)), *with_whole_steps(sections, last_step)]


def run_colors(runs: Sequence[RunFolder]) -> dict[str, str]:
    """The runs' colours by their names, with the path if two have the same name."""
    num_named = Counter(run.name for run in runs)
    return color_by_run(run.name if num_named[run.name] == 1 else f"{run.name} ({run.path})" for run in runs)


def loss_section(
    courses: Mapping[str, Course],
    colors: Mapping[str, str],
    domain_colors: Mapping[str, str],
    note: str,
    thinning: Thinning = ALL_POINTS,
) -> Section:
    """Overlaid loss courses by label: a plot for the mean over the domains, and one for each domain."""
    plots = [Plot("Mean of the domains", _overlay(courses, None, colors, thinning))]
    plots += [
        Plot(domain, _overlay(courses, domain, colors, thinning), color, domain)
        for domain, color in domain_colors.items()
    ]
    return Section("Loss per domain", note, plots, legend=dict(colors))


def _overlay(
    courses: Mapping[str, Course], domain: str | None, colors: Mapping[str, str], thinning: Thinning
) -> go.Figure:
    figure = go.Figure(layout=layout(230, yaxis={"hoverformat": ".3f"}))
    for index, (name, color) in enumerate(colors.items()):
        if name not in courses:
            continue
        steps, losses = courses[name]
        mean = mean_course(losses, len(steps))
        values = mean if domain is None else losses.get(domain, np.full(len(steps), np.nan))
        style = {"color": color, "width": 1.8, "dash": DASHES[index // len(RUN_COLORS) % len(DASHES)]}
        x, y = thinning.means(steps, values)
        figure.add_trace(line(x, y, name, color, line=style))
    return figure
