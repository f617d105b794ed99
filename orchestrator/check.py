"""`raymix check`: the plan of a run, printed without training."""

from collections.abc import Mapping
from pathlib import Path

import psutil
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.config import RunConfig
from orchestrator.config_files import left_aside
from orchestrator.detection.driver import with_known_shares
from orchestrator.machine import crowding
from orchestrator.memory import GIB, estimate_for_shape, read_shape
from orchestrator.stages.chain import plan_stages
from orchestrator.terminal import NOTHING, format_share, printable
from orchestrator.training.driver import prepare
from orchestrator.training.planning import budget_warning, count_steps, initial_algorithm, row_shares
from orchestrator.training.preparation import DomainStores, training_stores


def check(config: RunConfig, console: Console) -> None:
    """Prepare the token stores, then print rows, tokens, bad rows, epochs at the initial weights, steps and memory.

    A plan of stages is written out, stage by stage.
    """
    if not config.stage_list:
        console.print(plan_view(config, prepare(config, console)))
        return
    chain = plan_stages(config, lambda run: prepare(run, console))
    for number, planned in enumerate(chain, start=1):
        start = "the base model" if planned.parent is None else chain[planned.parent].stage.name
        folder = planned.find_folder()
        state = "finished" if (folder / "summary.json").exists() else "to be trained"
        place = f"stage {number} of {len(chain)}, from {start}: {printable(folder)} ({state})"
        console.print(Text(f"\n{place}" if number > 1 else place, style="dim"), plan_view(planned.run, planned.stores))


def plan_view(config: RunConfig, stores: Mapping[str, DomainStores]) -> RenderableType:
    """The plan as tables."""
    known = with_known_shares(config)
    num_steps = count_steps(known or config, stores)
    rows = num_steps * config.training.global_batch_size
    facts = Text.assemble(
        (printable(config.name), "bold"),
        f"  {num_steps:,} steps x {config.training.global_batch_size} rows of at most {config.data.max_length:,} tokens"
        f", {config.mixing.type}, {config.cluster.num_workers} x ZeRO-{config.training.deepspeed.zero_stage}",
    )
    shares = initial_algorithm(known, stores).initial_weights() if known else {}
    note = [] if known else [Text("shares: to be detected when the run starts, or before by `raymix detect`")]
    if warning := crowding(config.cluster):
        note.append(Text(warning, style="yellow"))
    note += [Text(printable(line), style="yellow") for line in left_aside(config)]
    if warning := budget_warning(known or config, stores):
        note.append(Text(warning, style="yellow"))
    return Group(facts, _domain_table(config, stores, shares, rows), *note, *_model_lines(config, stores))


def _domain_table(
    config: RunConfig, stores: Mapping[str, DomainStores], shares: Mapping[str, float], num_rows: int
) -> Table:
    shares_of_rows = row_shares(stores, shares, config.mixing.unit) if shares else {}
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    for header in ("domain", "share", "examples", "rows", "tokens", "bad", "excluded", "too long", "eval", "epochs"):
        table.add_column(header, justify="left" if header == "domain" else "right", no_wrap=True)
    for name, domain in stores.items():
        report, train = domain.report, domain.train
        table.add_row(
            printable(name),
            format_share(shares.get(name)),
            f"{train.num_examples:,}" if train else NOTHING,
            f"{train.num_rows:,}" if train else NOTHING,
            f"{train.num_tokens:,}" if train else NOTHING,
            f"{report.num_bad_rows:,}",
            f"{report.num_excluded:,}",
            f"{report.num_too_long:,}",
            f"{_num_measured(domain.eval.num_rows, config):,}/{domain.eval.num_rows:,}",
            f"{num_rows * shares_of_rows[name] / train.num_rows:.2f}" if train and shares else NOTHING,
        )
    return table


def _num_measured(num_rows: int, config: RunConfig) -> int:
    return num_rows if config.evaluation.max_rows == "all" else min(num_rows, config.evaluation.max_rows)


def _model_lines(config: RunConfig, stores: Mapping[str, DomainStores]) -> list[Text]:
    """What the model takes, and a warning where rows are longer than it can read."""
    most = max(store.num_loss_tokens / store.num_tokens for store in training_stores(stores).values())
    shape = read_shape(config)
    memory = estimate_for_shape(shape, config, most)
    detail = ", ".join(f"{part} {size / GIB:.2f}" for part, size in memory.parts.items() if size)
    need = Text(
        f"{memory.num_parameters:,} parameters, {memory.num_trainable:,} trainable; "
        f"about {memory.total_gib:.2f} GiB a rank at its peak, the {memory.moment} ({detail})"
    )
    return [
        need,
        *map(Text, shape.notes),
        *context_warning(config.data.max_length, shape.num_positions),
        *end_of_turn_warning(config, stores),
        *_isolation_lines(config, stores, shape.num_parameters),
    ]


def end_of_turn_warning(config: RunConfig, stores: Mapping[str, DomainStores]) -> list[Text]:
    """A line where answers are trained and the chat template ends none of them with a token of its own."""
    from workers.data.end_of_turn import ends_no_answer, has_answers
    from workers.model import load_tokenizer

    domains = [name for name, store in training_stores(stores).items() if has_answers(store)]
    if not domains or not ends_no_answer(load_tokenizer(config.model)):
        return []
    message = (
        f"the chat template puts no end token after an answer, so the model will not learn when to stop (domains "
        f"{', '.join(map(printable, domains))}); set model.chat_template to a template that does"
    )
    return [Text(message, style="yellow")]


def _isolation_lines(config: RunConfig, stores: Mapping[str, DomainStores], num_parameters: int) -> list[Text]:
    """How packed examples are kept apart, found on the model itself where it is at hand and fits into memory.

    A few tokens of a row are enough to see which way is right; the run itself proves it on a whole row as well.

    Raises:
        ValueError: no way of packing gives the model correct losses.
    """
    from workers.isolation import find_proof_row, prove_isolation, shorten

    row = find_proof_row(store for pair in stores.values() for store in (pair.train, pair.eval) if store)
    if row is None:
        return []
    size = num_parameters * (2 if config.model.dtype == "bfloat16" else 4)
    if not Path(config.model.path).expanduser().is_dir() or size > psutil.virtual_memory().available / 2:
        return [Text("packed examples: how they are kept apart is proved when the run starts")]
    import torch

    from workers.model import load_model
    from workers.packed_forward import PackedForward

    model = load_model(config.model)
    return [Text(str(prove_isolation(PackedForward(model, model, torch.device("cpu")), shorten(row))))]


def context_warning(max_length: int, num_positions: int | None) -> list[Text]:
    """A line where a row may hold more tokens than the model was made for."""
    if num_positions is None or max_length <= num_positions:
        return []
    message = (
        f"data.max_length: {max_length:,} tokens in a row, but the model was made for {num_positions:,}; it "
        "was never trained on positions beyond that, so lower it"
    )
    return [Text(message, style="yellow")]
