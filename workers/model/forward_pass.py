"""Forward passes over batches of packed rows: what one reads, and which tokens it predicts.

B rows of the batch, S sequences of the pass, L tokens, M tokens before the sequences were cut, N targets.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from workers.data.batches import Batch

Way = Literal["positions", "mask", "lengths", "separate"]
"""How packed examples are kept apart (`packed_forward.py`)."""


@dataclass(frozen=True)
class ForwardPass:
    """What one forward pass reads, and which tokens it predicts."""

    input_ids_SL: NDArray[np.integer]
    position_ids_SL: NDArray[np.integer]  # from 0 in every example; 0 in the padding of whole rows
    sequence_N: NDArray[np.int64]
    column_N: NDArray[np.int64]  # the column that predicts a target: the one before it
    target_N: NDArray[np.int64]
    domain_N: NDArray[np.int64]
    origin_SL: NDArray[np.int64]
    """A token's position in the batch's flattened rows; -1 in the padding of single examples."""
    in_chunks: bool = False
    """Whether its losses are computed in chunks."""
    whole_position_ids_SM: NDArray[np.integer] | None = None
    """If these are slices of the sequences (`slices.py`), the positions of all their columns."""

    @property
    def target_origin_N(self) -> NDArray[np.int64]:
        return self.origin_SL[self.sequence_N, self.column_N] + 1

    @property
    def is_used_SL(self) -> NDArray[np.bool_]:
        """False for padding, where positions do not increase. (An example of one token looks like padding.)"""
        continues = self.position_ids_SL > 0
        continues[:, :-1] |= continues[:, 1:]
        return continues & (self.origin_SL >= 0)

    def in_one_sequence(self) -> "ForwardPass":
        """The same with all sequences concatenated, for kernels that take varied lengths."""
        return replace(
            self,
            input_ids_SL=self.input_ids_SL.reshape(1, -1),
            position_ids_SL=self.position_ids_SL.reshape(1, -1),
            origin_SL=self.origin_SL.reshape(1, -1),
            sequence_N=np.zeros_like(self.sequence_N),
            column_N=self.sequence_N * self.input_ids_SL.shape[1] + self.column_N,
        )


def whole_rows(batch: "Batch", rows_per_pass: int, cut: bool = True) -> Iterator[ForwardPass]:
    """The rows in their order, `rows_per_pass` at a time.

    With `cut`, a pass ends at the last column that predicts a target: attention is causal, so what follows
    changes no loss.
    """
    places_BL = np.arange(batch.input_ids_BL.size).reshape(batch.input_ids_BL.shape)
    for start in range(0, len(batch.domain_B), rows_per_pass):
        rows = slice(start, start + rows_per_pass)
        row_N, column_N = np.nonzero(batch.loss_mask_BL[rows, 1:])
        length = int(column_N.max(initial=0)) + 1 if cut else batch.input_ids_BL.shape[1]
        yield ForwardPass(
            input_ids_SL=batch.input_ids_BL[rows, :length],
            position_ids_SL=batch.position_ids_BL[rows, :length],
            sequence_N=row_N,
            column_N=column_N,
            target_N=batch.input_ids_BL[rows][row_N, column_N + 1].astype(np.int64),
            domain_N=batch.domain_B[rows][row_N],
            origin_SL=places_BL[rows, :length],
        )


def single_examples(batch: "Batch", tokens_per_pass: int, cut: bool = True) -> Iterator[ForwardPass]:
    """Every example as a separate sequence, longest first, as many per pass as fit into `tokens_per_pass`.

    Examples without a target are left out: they teach nothing, and no other example reads them. Without `cut`, all
    examples are read whole.
    """
    starts = np.flatnonzero(batch.position_ids_BL.ravel() == 0)  # padding is a piece of one token each
    ends = np.append(starts[1:], batch.position_ids_BL.size)
    is_target = batch.loss_mask_BL.ravel()  # never an example's first token
    # A piece's tokens up to its last target, which is only predicted.
    places = np.where(is_target, np.arange(len(is_target)), -1)
    read_E = np.maximum.reduceat(places, starts) - starts if cut else ends - starts
    kept = np.flatnonzero(read_E > (0 if cut else 1))
    kept = kept[np.argsort(-read_E[kept], kind="stable")]
    while len(kept):
        length = int(read_E[kept[0]])
        count = max(tokens_per_pass // length, 1)
        yield _as_sequences(batch, starts[kept[:count]], read_E[kept[:count]], ends[kept[:count]])
        kept = kept[count:]


def _as_sequences(
    batch: "Batch", starts_S: NDArray[np.int64], lengths_S: NDArray[np.int64], ends_S: NDArray[np.int64]
) -> ForwardPass:
    column_L = np.arange(lengths_S.max())
    is_read_SL = column_L < lengths_S[:, None]
    origin_SL = np.where(is_read_SL, starts_S[:, None] + column_L, -1)
    ids, is_target = batch.input_ids_BL.ravel(), batch.loss_mask_BL.ravel()
    # A column predicts the next token, which may not be read itself.
    has_next_SL = is_read_SL & (starts_S[:, None] + column_L + 1 < ends_S[:, None])
    predicts_SL = has_next_SL & is_target[np.where(has_next_SL, origin_SL + 1, 0)]
    sequence_N, column_N = np.nonzero(predicts_SL)
    target_place_N = origin_SL[sequence_N, column_N] + 1
    return ForwardPass(
        input_ids_SL=np.where(is_read_SL, ids[origin_SL], 0),
        position_ids_SL=np.tile(column_L, (len(starts_S), 1)),
        sequence_N=sequence_N,
        column_N=column_N,
        target_N=ids[target_place_N].astype(np.int64),
        domain_N=batch.domain_B[target_place_N // batch.input_ids_BL.shape[1]],
        origin_SL=origin_SL,
    )


def idle_pass() -> ForwardPass:
    """One token and no target, for a rank without further work that must stay in step with the others."""
    nothing, zero = np.zeros(0, dtype=np.int64), np.zeros((1, 1), dtype=np.int64)
    return ForwardPass(zero, zero, nothing, nothing, nothing, nothing, zero - 1)


def passes_over(
    batch: "Batch", way: Way, rows_per_pass: int, *, cut: bool = True, tokens_per_pass: int | None = None
) -> Iterator[ForwardPass]:
    """The forward passes over a batch.

    Single examples come as many per pass as fit into `tokens_per_pass`; by default, the tokens of `rows_per_pass` rows.
    """
    if way == "separate":
        return single_examples(batch, tokens_per_pass or rows_per_pass * batch.input_ids_BL.shape[1], cut)
    rows = whole_rows(batch, rows_per_pass, cut)
    return (rows_of_pass.in_one_sequence() for rows_of_pass in rows) if way == "lengths" else rows
