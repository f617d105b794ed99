"""Mixture-of-experts models at ZeRO-3, on ranks whose tokens go to unlike numbers of experts."""

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.integration.zero_cases import NUM_DOMAINS, Case, build_engine, global_batch, learning_rate, reduced_loss


@functools.cache
def tiny_experts(family: str) -> Path:
    """A folder with a model of many experts."""
    from benchmarks.tiny_families import OWN_SIZES, build

    OWN_SIZES[family] = {**OWN_SIZES.get(family, {}), "num_experts": 16, "num_local_experts": 16}
    folder = Path(tempfile.mkdtemp(prefix=f"raymix-{family}-"))
    build(family).save_pretrained(folder)
    return folder


def train_on_unlike_tokens(case: Case) -> list[list[float]]:
    """Global losses of six steps, measured between: in every other one rank 1 has one token only, again and again."""
    engine = build_engine(case)
    losses = []
    for step in range(1, 7):
        batch = global_batch(step, engine.rank, engine.world_size)
        if engine.rank == 1 and step % 2 == 0:
            batch = replace(batch, input_ids_BL=np.where(batch.input_ids_BL > 0, 5, 0).astype(np.int32))
        losses.append(reduced_loss(*engine.forward(batch, NUM_DOMAINS)))
        engine.forward_backward(batch, NUM_DOMAINS)
        engine.step(learning_rate(step))
    engine.destroy()
    return losses
