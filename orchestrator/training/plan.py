"""The plan that workers follow, from the configuration and the token stores; and where its weights come from.

A run that starts from another with the same strategy trains the same parameters: the float32 master weights of the
earlier run are taken over, on top of the model that it started from. With another strategy (say LoRA after full
fine-tuning) it starts from the earlier run's exported model. Base model, tokenizer and chat template are always those
of the run itself.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from orchestrator.config.run import RunConfig
from orchestrator.config.sweep import read_begun
from orchestrator.mixing import initial_weights
from orchestrator.mixing.base import Domain, normalise
from orchestrator.prepare.token_stores import DomainStores, training_stores
from orchestrator.runs.folder import is_finished
from workers.storage.checkpoints import fetch_checkpoints
from workers.storage.mirror import fetch_folder
from workers.storage.run_copy import fetch_small
from workers.training.plan import StartPoint, StoreFolders, TrainingPlan, units_per_row


def build_plan(config: RunConfig, run_id: str, stores: Mapping[str, DomainStores]) -> TrainingPlan:
    """The run as its workers see it. Paths become absolute, since workers may run in another folder."""
    return TrainingPlan(
        run_id=run_id,
        folder=config.folder.resolve(),
        seed=config.seed,
        num_steps=count_steps(config, stores),
        unit=config.mixing.unit,
        domains={
            name: StoreFolders(
                train=domain.train.folder.resolve() if domain.train else None,
                eval=domain.eval.folder.resolve(),
                stream=domain.stream,
            )
            for name, domain in stores.items()
        },
        model=config.model.with_absolute_paths(),
        start=find_start(config),
        training=config.training.with_absolute_paths(),
        evaluation=config.evaluation,
        log_samples=config.data.log_samples,
        signals=list(config.mixing.required_signals),
    )


def count_steps(config: RunConfig, stores: Mapping[str, DomainStores]) -> int:
    """Optimizer steps: given, or enough for `epochs` passes over all rows, or the number nearest to `max_tokens` at the
    initial mixture."""
    training = config.training
    if training.max_steps is not None:
        return training.max_steps
    steps = _rows_of_budget(config, stores) / training.global_batch_size
    return max(1, round(steps) if training.max_tokens is not None else math.ceil(steps))


def budget_warning(config: RunConfig, stores: Mapping[str, DomainStores]) -> str | None:
    """A warning if one step takes more sequences than the budget or than all domains have."""
    if any(domain.stream for domain in stores.values()):  # it is not known how many they have
        return None
    training, num_rows = config.training, _num_rows(stores)
    batch, in_pass = training.global_batch_size, training.micro_batch_size * config.num_data_ranks
    wanted = math.inf if training.max_steps is not None else _rows_of_budget(config, stores)
    is_less = wanted < (batch if training.max_tokens is None else batch / 2)  # the nearest number of steps is 0
    if not is_less and batch <= num_rows:
        return None
    given = f"all domains together have {num_rows:,} sequences"
    if is_less:
        name = "epochs" if training.epochs is not None else "max_tokens"
        given = (
            f"training.{name} {getattr(training, name):,} is {wanted:,.4g} sequences (the domains have {num_rows:,})"
        )
    fitting = int(min(wanted, num_rows)) // in_pass * in_pass
    lower = f"to {fitting:,}" if fitting else f"and training.micro_batch_size, now {in_pass:,} sequences per pass"
    return (
        f"{given}, but a step trains on training.global_batch_size {batch:,} sequences, which is "
        f"{batch / num_rows:,.4g} epochs; lower global_batch_size {lower}, or give more rows"
    )


def _rows_of_budget(config: RunConfig, stores: Mapping[str, DomainStores]) -> float:
    training = config.training
    if training.max_tokens is not None:
        return training.max_tokens / mean_tokens_per_row(config, stores)
    assert training.epochs is not None
    return training.epochs * _num_rows(stores)


def _num_rows(stores: Mapping[str, DomainStores]) -> int:
    return sum(store.num_rows for store in training_stores(stores).values())


def mean_tokens_per_row(config: RunConfig, stores: Mapping[str, DomainStores]) -> float:
    """Mean tokens per row at the initial weights; over all rows while the weights are not known."""
    trained = training_stores(stores)
    try:
        shares = initial_weights(config.mixing, domain_sizes(stores))
    except ValueError:
        return sum(store.num_tokens for store in trained.values()) / sum(store.num_rows for store in trained.values())
    shares_of_rows = row_shares(stores, shares, config.mixing.unit)
    return math.fsum(
        share * trained[name].num_tokens / trained[name].num_rows for name, share in shares_of_rows.items()
    )


def row_shares(stores: Mapping[str, DomainStores], shares: Mapping[str, float], unit: str) -> dict[str, float]:
    """Shares of rows of the trained domains that correspond to these shares of examples (or tokens)."""
    return normalise({name: shares[name] / units_per_row(s, unit) for name, s in training_stores(stores).items()})


def domain_sizes(stores: Mapping[str, DomainStores]) -> list[Domain]:
    """What mixing algorithms know of the domains; of a streamed one no size."""
    return [
        Domain(name, None, None) if stores[name].stream else Domain(name, s.num_examples, s.num_tokens)
        for name, s in training_stores(stores).items()
    ]


def find_start(config: RunConfig) -> StartPoint | None:
    """Where `start` points, with absolute paths; None for the base model.

    ValueError if the run that it names is not finished, has another base model, or has nothing to start from.
    """
    if config.start is None:
        return None
    folder = config.start.run.expanduser().resolve()
    fetch_small(folder)
    if not is_finished(folder):
        what = "is not finished" if (folder / "config.json").exists() else "is not the folder of a run"
        raise ValueError(f"start.run: {folder} {what}; name a run that has a summary.json")
    earlier = read_begun(folder)
    if earlier.model.with_absolute_paths() != config.model.with_absolute_paths():
        raise ValueError(
            f"start.run: {folder} has the base model {earlier.model.path} ({earlier.model.dtype}), but this run has "
            f"{config.model.path} ({config.model.dtype}); use the same `model`, or {folder / 'model'} as model.path"
        )
    if earlier.training.strategy != config.training.strategy:
        if config.start.optimizer == "kept":
            raise ValueError(f"start.optimizer: {folder} trained other parameters (its strategy differs); use fresh")
        exported = folder / "model"
        fetch_folder(exported)
        if not (exported / "config.json").exists():
            told = "has no model/, which another strategy has to start from; run it again"
            raise ValueError(f"start.run: {folder} {told}")
        return StartPoint(model=config.model.with_absolute_paths().replaced(path=str(exported), revision=None))
    before = find_start(earlier)
    return StartPoint(
        model=before.model if before else config.model.with_absolute_paths(),
        checkpoint=_last_checkpoint(folder),
        keeps_optimizer=config.start.optimizer == "kept",
    )


def _last_checkpoint(folder: Path) -> Path:
    from workers.engine.checkpoint import latest_checkpoint  # imports torch

    faults: list[str] = []
    fetch_checkpoints(folder / "checkpoints")
    checkpoint = latest_checkpoint(folder / "checkpoints", faults.append)
    if checkpoint is None or faults:
        why = "; ".join(faults) or "it has none"
        raise ValueError(
            f"start.run: the last checkpoint of {folder} is missing ({why}); delete that folder and train it again"
        )
    return checkpoint
