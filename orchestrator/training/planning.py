"""Configuration and token stores -> the plan that workers follow."""

import math
from collections.abc import Mapping

from orchestrator.config import RunConfig
from orchestrator.controller.actor import DomainSize
from orchestrator.mixing.base import normalise
from orchestrator.training.preparation import DomainStores, training_stores
from workers.plan import StoreFolders, TrainingPlan, units_per_row


def build_plan(config: RunConfig, run_id: str, stores: Mapping[str, DomainStores]) -> TrainingPlan:
    """The run as its workers see it. Paths become absolute: workers may run in another folder."""
    return TrainingPlan(
        run_id=run_id,
        folder=config.folder.resolve(),
        seed=config.seed,
        num_steps=count_steps(config, stores),
        unit=config.mixing.unit,
        domains={
            name: StoreFolders(
                train=domain.train.folder.resolve() if domain.train else None, eval=domain.eval.folder.resolve()
            )
            for name, domain in stores.items()
        },
        model=config.model.with_absolute_paths(),
        training=config.training,
        evaluation=config.evaluation,
        log_samples=config.data.log_samples,
    )


def count_steps(config: RunConfig, stores: Mapping[str, DomainStores]) -> int:
    """Optimizer steps: given, or as many as `epochs` passes over all rows take."""
    if config.training.max_steps is not None:
        return config.training.max_steps
    assert config.training.epochs is not None
    num_rows = sum(store.num_rows for store in training_stores(stores).values())
    return max(1, math.ceil(config.training.epochs * num_rows / config.training.global_batch_size))


def row_shares(stores: Mapping[str, DomainStores], shares: Mapping[str, float], unit: str) -> dict[str, float]:
    """Shares of rows, of the trained domains, that give these shares of examples (or tokens)."""
    return normalise({name: shares[name] / units_per_row(s, unit) for name, s in training_stores(stores).items()})


def domain_sizes(stores: Mapping[str, DomainStores]) -> list[DomainSize]:
    """What mixing algorithms know of the trained domains."""
    return [DomainSize(name, s.num_examples, s.num_tokens) for name, s in training_stores(stores).items()]
