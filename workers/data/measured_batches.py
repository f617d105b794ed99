"""Batches that are measured, not trained on: chosen rows, outside the schedule. B rows, L tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.data.batches import Batch
from workers.data.store import TokenStore


@dataclass(frozen=True)
class MeasuredRow:
    """L tokens that are measured as one sequence."""

    domain: int
    row: int
    input_ids_L: NDArray[Any]
    position_ids_L: NDArray[Any]
    loss_mask_L: NDArray[np.bool_]
    example_L: NDArray[np.int64]


def build_batch(stores: Sequence[TokenStore], rows: Sequence[tuple[int, int] | None]) -> Batch:
    """A batch of rows given as (index of the domain, row); None for one that only fills up the pass."""
    return collate([None if row is None else _store_row(stores[row[0]], *row) for row in rows], len(stores))[0]


def _store_row(store: TokenStore, domain: int, row: int) -> MeasuredRow:
    used = slice(int(store.row_lengths[row]))
    arrays = (store.input_ids[row, used], store.position_ids[row, used], store.loss_mask[row, used])
    return MeasuredRow(domain, row, *arrays, np.full(len(arrays[0]), -1, dtype=np.int64))


def collate(rows: Sequence[MeasuredRow | None], num_domains: int) -> tuple[Batch, NDArray[np.int64]]:
    """The rows as a batch, and the example of each token, (B, L), -1 for padding. None fills up the pass."""
    length = max((len(row.input_ids_L) for row in rows if row is not None), default=1)
    input_ids_BL = np.zeros((len(rows), length), dtype=np.int32)
    position_ids_BL = np.zeros((len(rows), length), dtype=np.int32)
    loss_mask_BL = np.zeros((len(rows), length), dtype=np.bool_)
    example_BL = np.full((len(rows), length), -1, dtype=np.int64)
    for i, row in enumerate(rows):
        if row is not None:  # a row that only fills up the pass keeps an empty loss mask
            used = len(row.input_ids_L)
            input_ids_BL[i, :used] = row.input_ids_L
            position_ids_BL[i, :used] = row.position_ids_L
            loss_mask_BL[i, :used] = row.loss_mask_L
            example_BL[i, :used] = row.example_L
    batch = Batch(
        step=0,
        weights_version=0,
        input_ids_BL=input_ids_BL,
        position_ids_BL=position_ids_BL,
        loss_mask_BL=loss_mask_BL,
        domain_B=np.array([row.domain if row is not None else 0 for row in rows], dtype=np.int64),
        row_B=np.array([row.row if row is not None else 0 for row in rows], dtype=np.int64),
        global_loss_tokens=int(loss_mask_BL.sum()),
        global_tokens=0,
        global_rows_D=np.zeros(num_domains, dtype=np.int64),
        domain_rows_seen_D=np.zeros(num_domains, dtype=np.int64),
    )
    return batch, example_BL
