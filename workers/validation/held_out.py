"""Which held-out examples are measured: a random sample of the whole set, the same in every run on a data set.

Every example has an identity, a hash of its tokens and targets, and the examples are taken in the order of those
hashes: a random order that follows from the data alone. It does not depend on the run's seed, other domains, the number
of ranks, the order of files or the packing of the store, and a smaller sample is a subset of a larger one. As many
examples are taken as fit into `max_rows` rows (sequences), so that the cost of an evaluation follows from its rows.
They are packed again: a row of the store holds examples of similar length, so whole rows would be a poorer sample.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workers.data.packing import Packing, pack_examples
from workers.data.permutation import derive_key, hash_uint64
from workers.data.store import TokenStore

MaxRows = int | Literal["all"]
SAMPLE_KEY = derive_key("held-out sample")
_CONTENT_KEY = derive_key("held-out example")
_BLOCK_TOKENS = 2**22


@dataclass(frozen=True)
class HeldOutSample:
    """The E examples of one domain that are measured, in the order in which they were drawn."""

    example_E: NDArray[np.uint64]  # distinct identities
    row_E: NDArray[np.int64]  # row of the store
    place_E: NDArray[np.int64]  # place among the examples of that row, from 0
    start_E: NDArray[np.int64]  # column of the first token
    length_E: NDArray[np.int64]  # tokens
    num_tokens_E: NDArray[np.int64]  # loss tokens, at least one
    num_held_out: int  # examples with a loss token in the whole set
    packing: Packing  # which of them share a measured row

    @property
    def row_lengths(self) -> NDArray[np.int64]:
        return np.add.reduceat(self.length_E[self.packing.examples], self.packing.offsets[:-1])


def draw_sample(store: TokenStore, max_rows: MaxRows, key: np.uint64 = SAMPLE_KEY) -> HeldOutSample:
    """As many examples of an evaluation store as fit into `max_rows` rows, in the order of the key.

    If every row of the store is one example, so is every measured row.
    """
    found = np.concatenate([*_examples(store)], axis=1) if store.num_rows else np.zeros((6, 0), dtype=np.uint64)
    found = found[:, found[5] > 0]  # an example without a target has no loss
    identity_E = _tell_apart(found[0])
    order_E = np.argsort(hash_uint64(identity_E, key), kind="stable")
    identity_E, (row_E, place_E, start_E, length_E, tokens_E) = identity_E[order_E], found[1:, order_E].astype(np.int64)
    is_packed = store.num_examples > store.num_rows
    count = _count_fitting(length_E, max_rows, store.max_length, is_packed)
    columns = (row_E[:count], place_E[:count], start_E[:count], length_E[:count], tokens_E[:count])
    packing = pack_examples(length_E[:count].astype(np.int32), store.max_length, is_packed)
    return HeldOutSample(identity_E[:count], *columns, num_held_out=len(identity_E), packing=packing)


def _count_fitting(length_E: NDArray[np.int64], max_rows: MaxRows, max_length: int, is_packed: bool) -> int:
    """How many of the first examples can be packed into `max_rows` rows."""
    if max_rows == "all":
        return len(length_E)
    if not is_packed:
        return min(max_rows, len(length_E))
    most = int(np.searchsorted(np.cumsum(length_E), max_rows * max_length, side="right"))
    least = min(max_rows, most)  # one per row
    lengths_E = length_E.astype(np.int32)
    return least + bisect_right(
        range(least + 1, most + 1), max_rows, key=lambda number: pack_examples(lengths_E[:number], max_length).num_rows
    )


def _examples(store: TokenStore) -> Iterator[NDArray[np.uint64]]:
    """Block by block: hash, row, place in the row, first column, length and loss tokens, (6, E)."""
    rows_per_block = max(1, _BLOCK_TOKENS // store.max_length)
    for first in range(0, store.num_rows, rows_per_block):
        rows = slice(first, first + rows_per_block)
        lengths_B = np.asarray(store.row_lengths[rows])
        longest = int(lengths_B.max())
        is_used_BL = np.arange(longest) < lengths_B[:, None]
        row_T, column_T = np.nonzero(is_used_BL)
        positions_T = np.asarray(store.position_ids[rows, :longest])[is_used_BL].astype(np.uint64)
        ids_T = np.asarray(store.input_ids[rows, :longest])[is_used_BL].astype(np.uint64)
        is_target_T = np.asarray(store.loss_mask[rows, :longest])[is_used_BL].astype(np.uint64)
        start_E = np.flatnonzero(positions_T == 0)
        # A sum of hashed (position, token, target); array overflow wraps silently.
        content_T = (positions_T << np.uint64(33)) | (ids_T << np.uint64(1)) | is_target_T
        row_E = row_T[start_E]
        first_of_row_E = np.searchsorted(row_E, row_E)
        yield np.stack(
            [
                np.add.reduceat(hash_uint64(content_T, _CONTENT_KEY), start_E),
                (first + row_E).astype(np.uint64),
                (np.arange(len(start_E)) - first_of_row_E).astype(np.uint64),
                column_T[start_E].astype(np.uint64),
                np.diff(np.append(start_E, len(ids_T))).astype(np.uint64),
                np.add.reduceat(is_target_T, start_E),
            ]
        )


def _tell_apart(hash_E: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Distinct hashes: repeats of an example are numbered, and so drawn independently of each other."""
    order_E = np.argsort(hash_E, kind="stable")
    in_order_E = hash_E[order_E]
    repeat_E = np.empty(len(hash_E), dtype=np.uint64)
    repeat_E[order_E] = np.arange(len(hash_E)) - np.searchsorted(in_order_E, in_order_E)
    return np.where(repeat_E > 0, hash_uint64(hash_E, repeat_E), hash_E)
