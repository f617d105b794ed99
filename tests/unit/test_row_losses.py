"""Which rows of a batch have an entry in evaluation.json; tests/integration/test_engine.py measures real ones."""

from types import SimpleNamespace
from typing import Any

import torch

from tests.unit.data.stores import make_store
from workers.evaluation import build_batch
from workers.row_losses import _measure_rows


def test_a_row_that_the_model_is_certain_of_counts_and_one_that_fills_up_does_not() -> None:
    """A loss of 0 nats over tokens that are there is a result, and it has to be in the mean."""
    stores = [make_store(0, 3), make_store(1, 6)]
    batch = build_batch(stores, [(1, 5), None, (0, 2)])
    num_tokens_B = torch.from_numpy(batch.loss_mask_BL.sum(axis=1))
    sums: Any = (torch.tensor([0.0, 0.0, 2.5], dtype=torch.float64), num_tokens_B)
    engine: Any = SimpleNamespace(forward=lambda batch, num_domains: sums)
    lengths = int(stores[1].row_lengths[5]), int(stores[0].row_lengths[2])
    assert _measure_rows(engine, batch) == [(1, 5, 0.0, lengths[0] - 1), (0, 2, 2.5, lengths[1] - 1)]
