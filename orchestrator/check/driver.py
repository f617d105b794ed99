"""`raymix check`: the plan of a run, without training."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console

from orchestrator.check.record import CheckedDomain, CheckedPlan, IsolationPlan, MemoryNeed, StagePlace
from orchestrator.check.view import print_plan
from orchestrator.config.machine import crowding, left_aside
from orchestrator.config.plan import PlanConfig
from orchestrator.config.run import RunConfig
from orchestrator.mixing import initial_weights
from orchestrator.prepare.data import PreparedData
from orchestrator.prepare.detection.driver import with_known_shares
from orchestrator.prepare.findings import look_at_data
from orchestrator.prepare.memory import GIB, ModelShape, estimate_for_shape, read_shape
from orchestrator.prepare.token_stores import DomainStores, cached_tokenizer, template_day, training_stores
from orchestrator.runs.data_record import DomainCounts, Finding
from orchestrator.runs.folder import is_finished
from orchestrator.sweeps.stages.chain import plan_stages
from orchestrator.training.plan import (
    budget_warning,
    count_steps,
    domain_sizes,
    mean_tokens_per_row,
    row_shares,
)
from orchestrator.views.format import printable

_UNKNOWN = "shares: to be detected when the run starts, or beforehand with `raymix detect`"


def check(config: PlanConfig, console: Console) -> None:
    for plan in checked_plans(config, console):
        print_plan(plan, console)


def checked_plans(config: PlanConfig, console: Console) -> Iterator[CheckedPlan]:
    """The plan of a run, or of each stage in order; `console` shows the progress of preparing data.

    Raises:
        ValueError: the run could not start.
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
    model = _look_at_model(config, stores)
    return CheckedPlan(
        name=config.name,
        stage=stage,
        steps=num_steps,
        global_batch_size=config.training.global_batch_size,
        micro_batch_size=config.training.micro_batch_size,
        max_length=config.data.max_length,
        tokens=round(num_rows * mean_tokens_per_row(known or config, stores)),
        algorithm=config.mixing.type,
        workers=config.cluster.num_workers,
        zero_stage=config.training.deepspeed.zero_stage,
        domains=_domains(config, stores, record.domains, shares, num_rows),
        memory=model.memory,
        training_notes=list(model.shape.notes),
        isolation=model.isolation,
        findings=[
            *record.findings,
            *([] if known else [Finding(severity="note", kind="shares", where="mixing.initial", message=_UNKNOWN)]),
            *_warnings("left_aside", "", left_aside(config)),
            *_warnings("crowding", "cluster", [crowding(config.cluster)]),
            *_warnings("budget", "training", [budget_warning(known or config, stores)]),
            *context_warning(config.data.max_length, model.shape.num_positions),
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
        is_known = domain.train is not None and bool(shares)
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


@dataclass(frozen=True)
class _Model:
    shape: ModelShape
    memory: MemoryNeed
    isolation: IsolationPlan | None


def _look_at_model(config: RunConfig, stores: Mapping[str, DomainStores]) -> _Model:
    most = max(store.num_loss_tokens / store.num_tokens for store in training_stores(stores).values())
    shape = read_shape(config)
    memory = estimate_for_shape(shape, config, most)
    need = MemoryNeed(
        num_parameters=memory.num_parameters,
        num_trainable=memory.num_trainable,
        peak_gib=memory.total_gib,
        moment=memory.moment,
        parts_gib={part: size / GIB for part, size in memory.parts.items() if size},
    )
    return _Model(shape, need, _isolation(config, stores, shape.num_parameters))


def end_of_turn_warning(config: RunConfig, stores: Mapping[str, DomainStores]) -> list[Finding]:
    """A finding if answers are trained on and the chat template does not end them with an end token."""
    from workers.data.end_of_turn import ends_no_answer, has_answers

    domains = [name for name, store in training_stores(stores).items() if has_answers(store)]
    if not domains or not ends_no_answer(
        cached_tokenizer(config.model.with_absolute_paths(), config.cache_dir.resolve())
    ):
        return []
    message = (
        f"the chat template puts no end token after an answer, so the model will not learn when to stop (domains "
        f"{', '.join(map(printable, domains))}); set model.chat_template to a template that does"
    )
    return _warnings("end_of_turn", "model.chat_template", [message])


def _isolation(config: RunConfig, stores: Mapping[str, DomainStores], num_parameters: int) -> IsolationPlan | None:
    """How packed examples are kept apart, proved on the model itself if it is a local folder and fits into memory.

    A few tokens of a sequence show which way is right; the run itself also proves it on a whole sequence.

    Raises:
        ValueError: no way of packing gives the model correct losses.
    """
    from workers.model.isolation import find_proof_row, prove_isolation, shorten

    row = find_proof_row(store for pair in stores.values() for store in (pair.train, pair.eval) if store)
    if row is None:
        return None
    size = num_parameters * (2 if config.model.dtype == "bfloat16" else 4)
    if not Path(config.model.path).expanduser().is_dir() or size > psutil.virtual_memory().available / 2:
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
