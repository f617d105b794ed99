"""The plan of a run in the terminal."""

from collections.abc import Callable

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from orchestrator.check.record import CheckedDomain, CheckedPlan, MemoryNeed, StagePlace
from orchestrator.views.findings import print_findings
from orchestrator.views.format import NOTHING, format_share, printable

_WIDEST = 1000
_ALWAYS: dict[str, Callable[[CheckedDomain], str]] = {
    "share": lambda domain: format_share(domain.share),
    "examples": lambda domain: f"{domain.train.num_examples:,}" if domain.train else NOTHING,
    "sequences": lambda domain: f"{domain.train.num_rows:,}" if domain.train else NOTHING,
    "tokens": lambda domain: f"{domain.train.num_tokens:,}" if domain.train else NOTHING,
}
_WHERE_ANY: dict[str, Callable[[CheckedDomain], int]] = {
    "bad": lambda domain: domain.report.num_bad_rows,
    "excluded": lambda domain: domain.report.num_excluded,
    "too long": lambda domain: domain.report.num_too_long,
    "repeats": lambda domain: domain.train.num_repeats if domain.train else 0,
    "leaks": lambda domain: domain.num_leaked_prompts,
}
_AT_THE_END: dict[str, Callable[[CheckedDomain], str]] = {
    "eval": lambda domain: f"{domain.eval_rows_measured:,}/{domain.eval.num_rows:,}",
    "epochs": lambda domain: NOTHING if domain.epochs is None else f"{domain.epochs:.2f}",
}


def print_plan(plan: CheckedPlan, console: Console) -> None:
    soft_wrap = not console.is_terminal  # programs read whole lines
    if plan.stage:
        console.print(_place(plan.stage), soft_wrap=soft_wrap)
    console.print(_facts(plan), soft_wrap=soft_wrap)
    table = _domain_table(plan)
    # As wide as its figures: a narrow window wraps lines, which is better than cutting figures off.
    table.width = Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum
    console.print(table, crop=False, no_wrap=True, overflow="ignore")
    of_model = ("context", "end_of_turn")
    print_findings(console, (finding for finding in plan.findings if finding.kind not in of_model))
    console.print(_need(plan.memory), soft_wrap=soft_wrap)
    for note in plan.training_notes:
        console.print(Text(note), soft_wrap=soft_wrap)
    print_findings(console, (finding for finding in plan.findings if finding.kind in of_model))
    if plan.isolation:
        console.print(Text(plan.isolation.message), soft_wrap=soft_wrap)


def _place(stage: StagePlace) -> Text:
    start = stage.starts_from or "the base model"
    state = "finished" if stage.is_finished else "to be trained"
    place = f"stage {stage.number} of {stage.count}, from {start}: {printable(stage.folder)} ({state})"
    return Text(f"\n{place}" if stage.number > 1 else place, style="dim")


def _facts(plan: CheckedPlan) -> Text:
    return Text.assemble(
        (printable(plan.name), "bold"),
        f"  {plan.steps:,} steps x {plan.global_batch_size} sequences of at most {plan.max_length:,} tokens"
        f", {plan.algorithm}, {plan.workers} x ZeRO-{plan.zero_stage}",
    )


def _domain_table(plan: CheckedPlan) -> Table:
    """A row per domain; a count that is zero in all domains gets no column."""
    domains = plan.domains.values()
    columns: dict[str, list[str]] = {name: list(map(of, domains)) for name, of in _ALWAYS.items()}
    for name, of in _WHERE_ANY.items():
        if any(numbers := list(map(of, domains))):
            columns[name] = [f"{number:,}" for number in numbers]
    columns |= {name: list(map(of, domains)) for name, of in _AT_THE_END.items()}
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("domain", overflow="ellipsis", no_wrap=True, max_width=40)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for domain, *cells in zip(plan.domains, *columns.values(), strict=True):
        table.add_row(printable(domain), *cells)
    return table


def _need(memory: MemoryNeed) -> Text:
    detail = ", ".join(f"{part} {gib:.2f}" for part, gib in memory.parts_gib.items())
    return Text(
        f"{memory.num_parameters:,} parameters, {memory.num_trainable:,} trainable; "
        f"about {memory.peak_gib:.2f} GiB per rank at its peak, the {memory.moment} ({detail})"
    )
