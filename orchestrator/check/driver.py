"""`raymix check`: the plan of a run, without training, and how the terminal shows it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import psutil
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from orchestrator.check.record import CheckedDomain, CheckedPlan, IsolationPlan, MemoryNeed, StagePlace
from orchestrator.config.machine import crowding, left_aside
from orchestrator.config.plan import PlanConfig
from orchestrator.config.run import RunConfig
from orchestrator.mixing import initial_weights
from orchestrator.prepare.data import PreparedData
from orchestrator.prepare.detection.driver import with_known_shares
from orchestrator.prepare.findings import look_at_data
from orchestrator.prepare.memory import GIB, estimate_memory
from orchestrator.prepare.model_shape import ModelShape, read_shape
from orchestrator.prepare.token_stores import DomainStores, cached_tokenizer, template_day, training_stores
from orchestrator.runs.folder import is_finished
from orchestrator.runs.records import DomainCounts, Finding
from orchestrator.sweeps.stages.chain import plan_stages
from orchestrator.training.plan import budget_warning, count_steps, domain_sizes, mean_tokens_per_row, row_shares
from orchestrator.views.format import NOTHING, format_choices, format_share, printable
from orchestrator.views.terminal import print_findings

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
_UNKNOWN = "shares: to be detected when the run starts, or beforehand with `raymix detect`"


def check(config: PlanConfig, console: Console) -> None:
    for plan in checked_plans(config, console):
        print_plan(plan, console)


def checked_plans(config: PlanConfig, console: Console) -> Iterator[CheckedPlan]:
    """The plan of a run, or of each stage in order; ValueError if the run could not start.

    `console` shows the progress of preparing data.
    """
    data = PreparedData(console)
    if not config.stage_list:
        yield _check_run(config, data.stores(config))
        return
    chain = plan_stages(config, data.stores)
    for number, planned in enumerate(chain, start=1):
        folder = planned.find_folder()
        place = StagePlace(
            number=number,
            count=len(chain),
            name=planned.stage.name,
            starts_from=None if planned.parent is None else chain[planned.parent].stage.name,
            folder=str(folder),
            is_finished=is_finished(folder),
        )
        yield _check_run(planned.run, planned.stores, place)


def _check_run(config: RunConfig, stores: Mapping[str, DomainStores], stage: StagePlace | None = None) -> CheckedPlan:
    known = with_known_shares(config)
    num_steps = count_steps(known or config, stores)
    num_rows = num_steps * config.training.global_batch_size
    shares = initial_weights(known.mixing, domain_sizes(stores)) if known else {}
    record = look_at_data(config.data, stores, template_day(config))
    shape = read_shape(config)
    return CheckedPlan(
        name=config.name,
        stage=stage,
        steps=num_steps,
        global_batch_size=config.training.global_batch_size,
        micro_batch_size=config.training.micro_batch_size,
        sequence_parallel=config.training.sequence_parallel,
        max_length=config.data.max_length,
        tokens=round(num_rows * mean_tokens_per_row(known or config, stores)),
        algorithm=config.mixing.type,
        workers=config.group_sizes[-1],
        group_sizes=config.group_sizes,
        zero_stage=config.training.deepspeed.zero_stage,
        domains=_domains(config, stores, record.domains, shares, num_rows),
        memory=_memory_need(config, stores, shape),
        training_notes=list(shape.notes),
        isolation=_isolation(config, stores, shape),
        findings=[
            *record.findings,
            *([] if known else [Finding(severity="note", kind="shares", where="mixing.initial", message=_UNKNOWN)]),
            *_warnings("left_aside", "", left_aside(config)),
            *_warnings("crowding", "cluster", [crowding(config.cluster)]),
            *_warnings("group", "cluster.num_workers", [_single_size(config)]),
            *_warnings("budget", "training", [budget_warning(known or config, stores)]),
            *context_warning(config.data.max_length, shape.num_positions),
            *end_of_turn_warning(config, stores),
        ],
    )


def _domains(
    config: RunConfig,
    stores: Mapping[str, DomainStores],
    counts: Mapping[str, DomainCounts],
    shares: Mapping[str, float],
    num_rows: int,
) -> dict[str, CheckedDomain]:
    shares_of_rows = row_shares(stores, shares, config.mixing.unit) if shares else {}
    most = config.evaluation.max_rows
    domains = {}
    for name, domain in stores.items():
        is_known = domain.train is not None and domain.stream is None and bool(shares)
        num_eval = domain.eval.num_rows
        domains[name] = CheckedDomain(
            **counts[name].model_dump(),
            share=shares.get(name),
            epochs=num_rows * shares_of_rows[name] / domain.train.num_rows if domain.train and is_known else None,
            eval_rows_measured=num_eval if most == "all" else min(num_eval, most),
        )
    return domains


def _warnings(kind: str, where: str, messages: Iterable[str | None]) -> list[Finding]:
    return [Finding(severity="warning", kind=kind, where=where, message=message) for message in messages if message]


def _single_size(config: RunConfig) -> str | None:
    """A warning if an elastic group can have one size only."""
    training, cluster = config.training, config.cluster
    if cluster.max_workers == cluster.min_workers or len(config.group_sizes) > 1:
        return None
    return (
        f"of {cluster.min_workers} to {cluster.max_workers} workers, only {cluster.min_workers} can share "
        f"training.global_batch_size {training.global_batch_size} in passes of training.micro_batch_size "
        f"{training.micro_batch_size}{_of_slices(training.sequence_parallel)}: the group keeps its size; raise "
        "global_batch_size, or lower micro_batch_size"
    )


def _of_slices(number: int) -> str:
    return f", each in training.sequence_parallel {number} slices" if number > 1 else ""


def _memory_need(config: RunConfig, stores: Mapping[str, DomainStores], shape: ModelShape) -> MemoryNeed:
    most = max(store.num_loss_tokens / store.num_tokens for store in training_stores(stores).values())
    memory = estimate_memory(shape, config, most)
    return MemoryNeed(
        num_parameters=memory.num_parameters,
        num_trainable=memory.num_trainable,
        peak_gib=memory.total_gib,
        moment=memory.moment,
        parts_gib={part: size / GIB for part, size in memory.parts.items() if size},
        offloaded_gib=memory.offloaded / GIB,
    )


def end_of_turn_warning(config: RunConfig, stores: Mapping[str, DomainStores]) -> list[Finding]:
    """A finding if answers are trained on and the chat template does not end them with an end token."""
    from workers.data.end_of_turn import ends_no_answer, has_answers

    domains = [name for name, store in training_stores(stores).items() if has_answers(store)]
    tokenizer = cached_tokenizer(config.model.with_absolute_paths(), config.cache_dir.resolve())
    if not domains or not ends_no_answer(tokenizer):
        return []
    message = (
        f"the chat template puts no end token after an answer, so the model will not learn when to stop (domains "
        f"{', '.join(map(printable, domains))}); set model.chat_template to a template that does"
    )
    return _warnings("end_of_turn", "model.chat_template", [message])


def _isolation(config: RunConfig, stores: Mapping[str, DomainStores], shape: ModelShape) -> IsolationPlan | None:
    """How packed examples are kept apart, proved on the model itself if it is a local folder, fits into memory and will
    be trained with a kernel that works here.

    A few tokens of a sequence show which way is right; the run itself also proves it on a whole sequence. ValueError if
    no way of packing gives the model correct losses.
    """
    from workers.model.isolation import find_proof_row, prove_isolation, shorten

    row = find_proof_row(store for pair in stores.values() for store in (pair.train, pair.eval) if store)
    if row is None:
        return None
    size = shape.num_parameters * (2 if config.model.dtype == "bfloat16" else 4)
    is_here = Path(config.model.path).expanduser().is_dir() and size <= psutil.virtual_memory().available / 2
    if not is_here or shape.attention not in ("sdpa", "eager"):
        return IsolationPlan(message="packed examples: how they are kept apart will be proved when the run starts")
    import torch

    from workers.model.loading import load_model
    from workers.model.packed_forward import PackedForward

    model = load_model(config.model)
    proved = prove_isolation(PackedForward(model, model, torch.device("cpu")), shorten(row))
    return IsolationPlan(way=proved.way, difference_nats=proved.difference_nats, message=str(proved))


def context_warning(max_length: int, num_positions: int | None) -> list[Finding]:
    """A finding if a sequence may hold more tokens than the model was made for."""
    if num_positions is None or max_length <= num_positions:
        return []
    message = (
        f"data.max_length: {max_length:,} tokens in a sequence, but the model was made for {num_positions:,}; it "
        "was never trained on positions beyond that, so lower it"
    )
    return _warnings("context", "data.max_length", [message])


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
    console.print(_need(plan), soft_wrap=soft_wrap)
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
    slices = f" in {plan.sequence_parallel} slices" if plan.sequence_parallel > 1 else ""
    return Text.assemble(
        (printable(plan.name), "bold"),
        f"  {plan.steps:,} steps x {plan.global_batch_size} sequences of at most {plan.max_length:,} tokens{slices}"
        f", {plan.algorithm}, {format_choices(plan.group_sizes)} x ZeRO-{plan.zero_stage}",
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


def _need(plan: CheckedPlan) -> Text:
    memory = plan.memory
    rank = "rank of the smallest group" if len(plan.group_sizes) > 1 else "rank"
    detail = ", ".join(f"{part} {gib:.2f}" for part, gib in memory.parts_gib.items())
    offloaded = f"; {memory.offloaded_gib:.2f} GiB of host memory or disk besides" if memory.offloaded_gib else ""
    return Text(
        f"{memory.num_parameters:,} parameters, {memory.num_trainable:,} trainable; "
        f"about {memory.peak_gib:.2f} GiB per {rank} at its peak, the {memory.moment} ({detail}){offloaded}"
    )
