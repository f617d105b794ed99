"""What the tests of sequences in slices run on every rank."""

import os
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist

from tests.integration.zero_cases import Case, build_engine, global_batch
from tests.kept_tensors import keeping
from workers.data.batches import Batch
from workers.model.forward_pass import whole_rows


def prove(case: Case) -> tuple[str, float | None]:
    """How packed examples are kept apart, and the most that packing changes; or why the model is refused."""
    engine = build_engine(case)
    try:
        isolation = engine.prove_isolation(proof_row())
        return isolation.way, isolation.difference_nats
    except ValueError as error:
        return str(error), None
    finally:
        engine.destroy()


def proof_row() -> Batch:
    """A packed row of three examples."""
    batch = global_batch(1)
    used = slice(int((batch.input_ids_BL[1] != 0).sum()))
    positions_1L = batch.position_ids_BL[1:2, used]
    return replace(
        batch,
        input_ids_BL=batch.input_ids_BL[1:2, used],
        position_ids_BL=positions_1L,
        loss_mask_BL=positions_1L > 0,
        domain_B=batch.domain_B[1:2],
        row_B=batch.row_B[1:2],
    )


def bytes_kept(case: Case, is_packed: bool) -> int:
    """What a rank's decoder keeps of one sequence for the backward pass, without weights."""
    engine, row = build_engine(case), proof_row()
    if not is_packed:
        row = replace(row, position_ids_BL=np.arange(row.input_ids_BL.size)[None])
    decoding, kept = ExitStack(), []

    def start(module: torch.nn.Module, *given: Any) -> None:
        kept.append(decoding.enter_context(keeping(engine.module.parameters())))

    def stop(module: torch.nn.Module, *given: Any) -> None:
        decoding.close()

    engine.module.model.register_forward_pre_hook(start)
    engine.module.model.register_forward_hook(stop)
    engine.module.train()
    (one_pass,) = engine.packed.plan(whole_rows(row, 1, cut=False))
    engine.packed.nats(one_pass)
    engine.destroy()
    return sum(storage.nbytes() for storage in kept[0].values())


def train_run(config_path: Path, changes: list[str], stop_at: int | None = None) -> None:
    """A whole training by all ranks, without Ray; `stop_at` ends it when that step is to be evaluated."""
    from orchestrator.config.load import load_config
    from orchestrator.controller.journal import DurableController
    from orchestrator.mixing import Measured, build_mixing_algorithm, resolve_mixing
    from orchestrator.prepare.token_stores import prepare_stores
    from orchestrator.training.plan import build_plan, domain_sizes
    from workers.engine.collectives import on_rank_zero
    from workers.training import loop
    from workers.training.trainer import Trainer

    os.chdir(config_path.parent)
    config = load_config(config_path, changes)

    def prepare() -> Any:
        return prepare_stores(config.domains, config.data, config.model, config.cache_dir, lambda *progress: None)

    on_rank_zero(lambda: prepare() and None)
    stores = prepare()
    plan = build_plan(config, config.name, stores)
    plan.folder.mkdir(parents=True, exist_ok=True)
    mixing = resolve_mixing(config.mixing, Measured(), config.trained_domains)
    algorithm = build_mixing_algorithm(mixing, domain_sizes(stores))
    source: Any = DurableController(plan.folder, plan.run_id, algorithm) if dist.get_rank() == 0 else None
    measure = Trainer.measure

    def measure_or_stop(trainer: Trainer, step: int) -> None:
        if step == stop_at:
            raise InterruptedError
        measure(trainer, step)

    with suppress(InterruptedError), patch.object(Trainer, "measure", measure_or_stop):
        loop.train(plan, source)
