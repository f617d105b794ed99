"""Several runs side by side: the rows of a table, its form for the terminal, and the plots."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.runs.benchmark_record import MetricScores, asked_for
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.loss_errors import (
    ERROR_NOTE,
    change_nats_text,
    error_text,
    run_errors,
)
from orchestrator.runs.records import RunSummary
from orchestrator.runs.summary import evaluation_losses, summarise
from orchestrator.views.benchmarks import format_change, format_score
from orchestrator.views.palette import color_by_name
from orchestrator.views.report.differences import difference_sections, mean_pairs, pair_with_first
from orchestrator.views.report.figures import (
    ALL_POINTS,
    LOSS_NOTE,
    Plot,
    Section,
    layout,
    line,
    shares_figure,
    with_whole_steps,
)
from orchestrator.views.report.series import Thinning
from orchestrator.views.terminal import NOTHING, format_duration, format_loss, printable
from orchestrator.views.verdict import HARMFUL, in_a_word, verdict_lines
from workers.contracts import Change

RUN_COLORS = ("#d1495b", "#2e86ab", "#6a994e", "#9d7bb0", "#bc8034", "#6c757d", "#26a69a", "#c06c9b")
DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True)
class Cell:
    """One entry of the comparison; `is_best` where it is the lowest loss of its column."""

    text: str
    is_best: bool = False


@dataclass(frozen=True)
class Comparison:
    """Columns of the comparison: a heading, and a cell for each run."""

    run_labels: list[str]
    columns: dict[str, list[Cell]]
    has_benchmarks: bool = False
    paired_with: str = ""
    """The run that differences are from; empty where there are none."""
    harmful: frozenset[str] = frozenset()
    """Labels of the runs that ended with harm."""
    verdicts: dict[str, list[str]] = field(default_factory=dict)
    """Label of each run that ended with harm, or with domains worse than they began or past their lowest -> what came
    of it."""


def load_runs(run_folders: Sequence[Path]) -> list[RunFolder]:
    """The runs as they are now; a folder that is no run is an error."""
    runs = [RunFolder(folder) for folder in dict.fromkeys(Path(folder) for folder in run_folders)]
    for run in runs:
        run.refresh()
        if not (run.config or run.weights or len(run.metrics)):
            raise ValueError(f"{run.path} is not the folder of a run: no config.json, weights/ or metrics.jsonl in it")
    return runs


def all_domains(runs: Sequence[RunFolder]) -> list[str]:
    """The domains of all runs, in order of appearance."""
    return list(dict.fromkeys(domain for run in runs for domain in run.domains))


def run_labels(runs: Sequence[RunFolder]) -> list[str]:
    """The runs' names; with their place where two have the same name."""
    num_named = Counter(run.name for run in runs)
    return [run.name if num_named[run.name] == 1 else f"{run.name} ({run.path})" for run in runs]


def compare(runs: Sequence[RunFolder]) -> Comparison:
    """The columns of the table, best losses marked; losses at the end with their errors and their differences from the
    first run, paired over the examples that both measured."""
    results, errors, labels = [summarise(run) for run in runs], [run_errors(run) for run in runs], run_labels(runs)
    pairs = pair_with_first(runs)
    columns = {
        "algorithm": [Cell(result.mixing_type) for result in results],
        "steps": [Cell(_steps(run, result.steps)) for run, result in zip(runs, results, strict=True)],
        "verdict": [Cell(in_a_word(result.verdict)) for result in results],
    }
    means = [(of_run.mean.end, change) for of_run, change in zip(errors, mean_pairs(runs, pairs), strict=True)]
    for name, courses, known in (
        ("mean", [result.mean_loss_nats for result in results], means),
        ("worst", [result.worst_loss_nats for result in results], [(None, None)] * len(runs)),
    ):
        columns[f"{name} base"] = [Cell(format_loss(course.start)) for course in courses]
        columns[f"{name} best"] = _losses([course.best for course in courses])
        columns[f"{name} end"] = _losses([course.end for course in courses], known)
    for domain in all_domains(runs):
        ends = [result.domains[domain].loss_nats_end if domain in result.domains else None for result in results]
        known = [(of_run.of(domain).end, pair.get(domain)) for of_run, pair in zip(errors, pairs, strict=True)]
        columns[f"{domain} end"] = _losses(ends, known)
    benchmarks = _benchmarks(runs)
    columns |= benchmarks
    columns["tokens"] = [Cell(f"{result.num_tokens:,}") for result in results]
    columns["time"] = [Cell(format_duration(result.seconds)) for result in results]
    paired_with = labels[0] if any(pairs) else ""
    told = zip(labels, runs, results, strict=True)
    verdicts = {label: verdict_lines(run, result) for label, run, result in told if _is_told(result)}
    harmful = frozenset(label for label, result in zip(labels, results, strict=True) if result.verdict in HARMFUL)
    return Comparison(labels, columns, bool(benchmarks), paired_with, harmful, verdicts)


def _is_told(result: RunSummary) -> bool:
    is_over_fitted = any(domain.is_past_lowest for domain in result.domains.values())
    return result.verdict in HARMFUL or result.verdict == "mixed" or is_over_fitted


def _steps(run: RunFolder, done: int) -> str:
    if run.summary is not None or run.total_steps is None:
        return f"{done:,}"
    return f"{done:,} of {run.total_steps:,}"


def _losses(
    losses: Sequence[float | None], known: Sequence[tuple[float | None, Change | None]] | None = None
) -> list[Cell]:
    """Losses, `known` with their errors and their differences from the first run."""
    finite = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    best = min(finite) if len(finite) > 1 else None
    return [
        Cell(
            format_loss(loss) + error_text(error) + (f" ({change_nats_text(change)})" if change else ""),
            is_best=best is not None and loss == best,
        )
        for loss, (error, change) in zip(losses, known or [(None, None)] * len(losses), strict=True)
    ]


def _benchmarks(runs: Sequence[RunFolder]) -> dict[str, list[Cell]]:
    """A column for each metric of each task that any of the runs was evaluated on, the best result marked."""
    scores = [
        {f"{score.label}: {name}": metric for score in asked_for(run.tasks) for name, metric in score.metrics.items()}
        for run in runs
    ]
    columns = {}
    for heading in dict.fromkeys(heading for each in scores for heading in each):
        metrics = [each.get(heading) for each in scores]
        best = _best([metric for metric in metrics if metric is not None])
        columns[heading] = [
            Cell(NOTHING)
            if metric is None
            else Cell(
                f"{format_score(metric.result)} ({format_change(metric)})",
                best is not None and metric.result.value == best,
            )
            for metric in metrics
        ]
    return columns


def _best(metrics: Sequence[MetricScores]) -> float | None:
    """The best of several results; None where it is not known which direction is better."""
    values = [metric.result.value for metric in metrics if metric.result.value is not None]
    if len(values) < 2 or metrics[0].is_higher_better is None:
        return None
    return max(values) if metrics[0].is_higher_better else min(values)


def error_note(comparison: Comparison) -> str:
    """What a reader must know of the errors and differences in the table."""
    note = f"{ERROR_NOTE}."
    if not comparison.paired_with:
        return note
    return f"{note} In brackets: minus {comparison.paired_with}, paired over the examples that both measured."


def comparison_table(run_folders: Sequence[Path]) -> RenderableType:
    """The comparison for a terminal: a column for each run, so that many domains fit into 80 characters; below it what
    came of those that ended with harm."""
    comparison = compare(load_runs(run_folders))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, header_style="dim")
    table.caption, table.caption_justify = Text(printable(error_note(comparison)), style="dim"), "left"
    table.add_column("loss in nats per token", overflow="fold")
    for name in comparison.run_labels:
        table.add_column(Text(printable(name)), justify="right", overflow="fold")
    for heading, cells in comparison.columns.items():
        texts = [Text(printable(cell.text), style="bold green" if cell.is_best else "") for cell in cells]
        table.add_row(Text(printable(heading)), *texts)
    told = [Text(printable(f"{label}: {' '.join(lines)}")) for label, lines in comparison.verdicts.items() if lines]
    return Group(table, *told)


def comparison_sections(runs: Sequence[RunFolder], thinning: Thinning = ALL_POINTS) -> list[Section]:
    """Held-out losses overlaid, one plot for each domain; shares side by side."""
    loss_note = f"{LOSS_NOTE}; a line for each run, a point for each evaluation, step 0 is where the run starts."
    losses = [Plot("Mean of the domains", _overlay(runs, None, thinning))]
    domain_colors = color_by_name(all_domains(runs))
    losses += [Plot(domain, _overlay(runs, domain, thinning), color, domain) for domain, color in domain_colors.items()]
    labelled = zip(run_labels(runs), runs, strict=True)
    shares = [Plot(name, shares_figure(run, domain_colors, 220, thinning)) for name, run in labelled if run.weights]
    last_step = max(run.metrics.last_step for run in runs)
    for plot in shares:
        plot.figure.update_xaxes(range=[0, max(last_step, 1)])
    sections = [
        Section("Loss per domain", loss_note, losses),
        Section("Shares over time", "Share of each domain in the mixture, run by run.", shares),
    ]
    return [*difference_sections(runs, run_colors(runs), list(domain_colors)), *with_whole_steps(sections, last_step)]


def run_colors(runs: Sequence[RunFolder]) -> dict[str, str]:
    """The colour of each run, by its label."""
    return {name: RUN_COLORS[index % len(RUN_COLORS)] for index, name in enumerate(run_labels(runs))}


def _overlay(runs: Sequence[RunFolder], domain: str | None, thinning: Thinning) -> go.Figure:
    figure = go.Figure(layout=layout(230, yaxis={"hoverformat": ".3f"}))
    for index, (run, (name, color)) in enumerate(zip(runs, run_colors(runs).items(), strict=True)):
        steps, losses = evaluation_losses(run)
        unknown = np.full(len(steps), np.nan)
        if domain is None:
            values = np.mean(list(losses.values()), axis=0) if losses else unknown
        else:
            values = losses.get(domain, unknown)
        style = {"color": color, "width": 1.8, "dash": DASHES[index // len(RUN_COLORS) % len(DASHES)]}
        x, y = thinning.means(steps, values)
        figure.add_trace(line(x, y, name, color, line=style))
    return figure
