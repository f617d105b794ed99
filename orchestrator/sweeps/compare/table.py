"""The comparison for a terminal: a row for each variant, in tables that a terminal is wide enough for."""

from collections import Counter
from collections.abc import Iterable

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.runs.loss_errors import PLUS_MINUS
from orchestrator.sweeps.compare.results import (
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
    VariantResult,
)
from orchestrator.sweeps.compare.statistics import CONFIDENCE, Estimate
from orchestrator.views.terminal import NOTHING, format_duration, printable
from orchestrator.views.verdict import HARMFUL, in_a_word


def format_estimate(estimate: Estimate | None, sign: str = "") -> str:
    """Mean, half width of the interval and error over the held-out examples, in nats; `sign` is "+" for differences."""
    if estimate is None:
        return NOTHING
    spread = "" if estimate.half_width is None else f" {PLUS_MINUS}{estimate.half_width:.3f}"
    held_out = "" if estimate.held_out_error is None else f" [{estimate.held_out_error:.3f}]"
    return f"{estimate.mean:{sign}.3f}{spread}{held_out}"


def loss_columns(comparison: Comparison) -> dict[str, list[str]]:
    """Heading -> a cell for each variant: mean and worst loss, and their differences against the first variant."""
    results = list(comparison.variants.values())
    columns = {}
    for heading, measure in (("mean loss", MEAN), ("worst loss", WORST)):
        columns[heading] = [format_estimate(result.means.get(measure)) for result in results]
        columns[f"{heading} vs {comparison.baseline}"] = [_difference(result, measure) for result in results]
    return columns


def target_columns(comparison: Comparison) -> dict[str, list[str]]:
    """Heading -> a cell for each variant: what became of the target and of the rest; none where there is no target."""
    if comparison.target is None:
        return {}
    measures = {"target gain": TARGET_GAIN, "others' change": ELSEWHERE}
    results = list(comparison.variants.values())
    return {name: [format_estimate(r.means.get(measure), "+") for r in results] for name, measure in measures.items()}


def amount_columns(comparison: Comparison) -> dict[str, list[str]]:
    """Heading -> a cell for each variant: seeds, tokens and times."""
    results = list(comparison.variants.values())
    columns = {"seeds": [str(len(result.runs)) for result in results]}
    columns["tokens"] = [_number(result.means.get(NUM_TOKENS)) for result in results]
    columns["training"] = [_duration(result.means.get(TRAINING_SECONDS)) for result in results]
    columns["evaluations"] = [_duration(result.means.get(EVALUATION_SECONDS)) for result in results]
    if any(_mean(result.means.get(SIGNAL_SECONDS)) for result in results):
        columns["signals"] = [_duration(result.means.get(SIGNAL_SECONDS)) for result in results]
    return columns


def domain_columns(comparison: Comparison) -> dict[str, list[str]]:
    """Heading -> a cell for each variant: the loss of each domain."""
    results = comparison.variants.values()
    return {name: [format_estimate(r.means.get(f"loss_nats/{name}")) for r in results] for name in comparison.domains}


def lowest(comparison: Comparison, measure: str) -> str | None:
    """The variant with the lowest mean of a measure, where several have one."""
    means = {label: r.means[measure].mean for label, r in comparison.variants.items() if measure in r.means}
    return min(means, key=lambda label: means[label]) if len(means) > 1 else None


def notes(comparison: Comparison) -> list[str]:
    """What a reader of the table must know."""
    lines = [
        f"Losses in nats per token on held-out rows at the end of training; {PLUS_MINUS} is half a {CONFIDENCE:.0%} t "
        f"interval over seeds, and differences against {comparison.baseline} are paired by seed."
    ]
    if any(estimate.held_out_error is not None for r in comparison.variants.values() for estimate in r.means.values()):
        lines.append(
            "In square brackets: one standard error over the held-out examples, paired for differences. All seeds "
            "share the examples, so the intervals do not know of it."
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


def harm_notes(comparison: Comparison) -> list[str]:
    """A line for each variant of which runs ended with harm, or with some domains worse than they began."""
    lines = []
    for label, result in comparison.variants.items():
        counts = Counter(run.verdict for run in result.runs if run.verdict in HARMFUL or run.verdict == "mixed")
        told = ", ".join(f"{count} of {len(result.runs)} {in_a_word(verdict)}" for verdict, count in counts.items())
        if told:
            lines.append(f"{label}: {told}; the page and the summary.json of each run say what and why.")
    return lines


def comparison_view(comparison: Comparison) -> RenderableType:
    """Tables that fit into 80 characters where few domains are compared, those without intervals, and the notes."""
    domains = {name: [cell.split()[0] for cell in cells] for name, cells in domain_columns(comparison).items()}
    groups = (loss_columns(comparison), target_columns(comparison), amount_columns(comparison), domains)
    tables = [_table(comparison, columns) for columns in groups if columns]
    failed = [Text(f"failed: {printable(name)}: {printable(why)}") for name, why in comparison.failed.items()]
    harm = [Text(printable(line), style="yellow") for line in harm_notes(comparison)]
    return Group(*tables, *harm, *_plain(notes(comparison)), *failed)


def _table(comparison: Comparison, columns: dict[str, list[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("", overflow="fold")
    for heading, cells in columns.items():
        longest_word = max((len(word) for cell in cells for word in cell.split()), default=1)
        table.add_column(Text(printable(heading)), justify="right", overflow="fold", min_width=longest_word)
    for row, label in enumerate(comparison.variants):
        texts = [Text(cells[row], style=_style(comparison, heading, label)) for heading, cells in columns.items()]
        table.add_row(Text(printable(label)), *texts)
    return table


def _style(comparison: Comparison, heading: str, label: str) -> str:
    """The lowest loss stands out; so does a difference that is more than its interval."""
    losses = {"mean loss": MEAN, "worst loss": WORST} | {name: f"loss_nats/{name}" for name in comparison.domains}
    if heading in losses:
        return "bold green" if lowest(comparison, losses[heading]) == label else ""
    measure = losses.get(heading.removesuffix(f" vs {comparison.baseline}"))
    difference = comparison.variants[label].differences.get(measure) if measure else None
    if difference is None or not difference.is_clear:
        return ""
    return "green" if difference.mean < 0 else "red"


def _plain(lines: Iterable[str]) -> list[Text]:
    return [Text(line, style="dim") for line in lines]


def _difference(result: VariantResult, measure: str) -> str:
    return format_estimate(result.differences.get(measure), "+")


def _mean(estimate: Estimate | None) -> float:
    return 0.0 if estimate is None else estimate.mean


def _number(estimate: Estimate | None) -> str:
    return NOTHING if estimate is None else f"{estimate.mean:,.0f}"


def _duration(estimate: Estimate | None) -> str:
    return NOTHING if estimate is None else format_duration(estimate.mean)
