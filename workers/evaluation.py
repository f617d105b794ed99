"""Per-domain evaluation: sums of nats and counts of loss tokens, reduced over the ranks first and divided last.

The rows measured are the first of each domain's evaluation store, always the same ones. All ranks run the same number
of forward passes of the same number of rows, because under ZeRO-3 every pass is a collective.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist

from workers.data.batches import Batch
from workers.data.store import TokenStore

if TYPE_CHECKING:
    from workers.engine import Engine


def build_evaluation_batches(
    stores: Mapping[str, TokenStore], max_rows: int, micro_batch_size: int, rank: int, world_size: int
) -> list[Batch]:
    """This rank's batches of one evaluation, to be built once and measured many times.

    Rows of all domains are sorted by length, so that a batch holds little padding and ranks work equally long.
    """
    in_order = list(stores.values())
    rows = [(domain, row) for domain, store in enumerate(in_order) for row in range(min(max_rows, store.num_rows))]
    lengths = np.array([in_order[domain].row_lengths[row] for domain, row in rows], dtype=np.int64)
    ordered: list[tuple[int, int] | None] = [rows[i] for i in np.argsort(-lengths, kind="stable")]
    rows_per_pass = micro_batch_size * world_size
    ordered += [None] * (-len(ordered) % rows_per_pass)
    return [
        build_batch(in_order, ordered[start : start + micro_batch_size])
        for start in range(rank * micro_batch_size, len(ordered), rows_per_pass)
    ]


def evaluate(engine: "Engine", batches: list[Batch], domains: list[str]) -> tuple[dict[str, float], dict[str, int]]:
    """Sum of the loss in nats and number of loss tokens of each domain, over all ranks; a collective."""
    loss_sum_D = torch.zeros(len(domains), dtype=torch.float64, device=engine.device)
    num_tokens_D = torch.zeros(len(domains), dtype=torch.int64, device=engine.device)
    for batch in batches:
        batch_loss_sum_D, batch_num_tokens_D = engine.forward(batch, len(domains))
        loss_sum_D += batch_loss_sum_D
        num_tokens_D += batch_num_tokens_D
    dist.all_reduce(loss_sum_D)
    dist.all_reduce(num_tokens_D)
    return dict(zip(domains, loss_sum_D.tolist(), strict=True)), dict(zip(domains, num_tokens_D.tolist(), strict=True))


def build_batch(stores: Sequence[TokenStore], rows: Sequence[tuple[int, int] | None]) -> Batch:
    """A batch to be measured: rows as (index of the domain, row), None for one that only fills up the pass."""
    length = max((int(stores[row[0]].row_lengths[row[1]]) for row in rows if row is not None), default=1)
    input_ids_BL = np.zeros((len(rows), length), dtype=np.int32)
    position_ids_BL = np.zeros((len(rows), length), dtype=np.int32)
    loss_mask_BL = np.zeros((len(rows), length), dtype=np.bool_)
    for i, row in enumerate(rows):
        if row is not None:  # a row that only fills up the pass keeps an empty loss mask
            store, r = stores[row[0]], row[1]
            used = int(store.row_lengths[r])
            input_ids_BL[i, :used] = store.input_ids[r, :used]
            position_ids_BL[i, :used] = store.position_ids[r, :used]
            loss_mask_BL[i, :used] = store.loss_mask[r, :used]
    return Batch(
        step=0,
        weights_version=0,
        input_ids_BL=input_ids_BL,
        position_ids_BL=position_ids_BL,
        loss_mask_BL=loss_mask_BL,
        domain_B=np.array([row[0] if row is not None else 0 for row in rows], dtype=np.int64),
        row_B=np.array([row[1] if row is not None else 0 for row in rows], dtype=np.int64),
        global_loss_tokens=int(loss_mask_BL.sum()),
        global_tokens=0,
        global_rows_D=np.zeros(len(stores), dtype=np.int64),
        domain_rows_seen_D=np.zeros(len(stores), dtype=np.int64),
    )
