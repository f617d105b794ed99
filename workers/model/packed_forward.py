"""Batches of packed rows through a causal language model: forward passes, and the ways that keep packed examples apart.

    positions   position ids that restart; transformers builds the block-diagonal mask from them, or flash attention its
                sequence lengths, in the families whose code uses them
    mask        that mask, built here with transformers and passed on, in families that accept one
    lengths     all rows as one sequence, and the ends of its examples under the names used by kernels for varied
                lengths (causal-conv1d, mamba-ssm, flash-linear-attention, flash attention)
    separate    every example as a separate sequence: right for any causal model, and slower

All have the same targets, and `isolation.py` proves which is right for a model. Where the logits of a pass would take
too much memory, its losses are computed in chunks (`chunked_loss.py`), if that is right for the model. B rows of the
batch, S sequences of the pass, L tokens, K positions whose next token counts, N targets, V vocabulary.
"""

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.masking_utils import create_masks_for_generate

from workers.model.chunked_loss import find_chunked_loss

if TYPE_CHECKING:
    from workers.data.batches import Batch

Way = Literal["positions", "mask", "lengths", "separate"]

_PROOF_LENGTH = 8  # tokens
_PROOF_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}  # nats; a shape of its own is rounded in its own way


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


class PackedForward:
    """Calls a model on forward passes, possibly through a wrapper (DeepSpeed's engine) as `call`."""

    def __init__(
        self, call: Callable[..., Any], model: PreTrainedModel, device: torch.device, way: Way = "positions"
    ) -> None:
        self._call = call
        self.model = model
        self._device = device
        self.way: Way = way
        parameters = inspect.signature(model.forward).parameters
        self._takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        self._named = parameters.keys()
        self.keeps_logits = "logits_to_keep" in self._named  # whether the head can skip positions without a target
        self._loss = find_chunked_loss(model)
        self._loss_is_right: bool | None = None

    def why_not(self, way: Way) -> str | None:
        """Why the model cannot be called in this way, or None."""
        if way in ("positions", "lengths") and "position_ids" not in self._named:
            return "the model takes no positions"
        if way == "mask" and "attention_mask" not in self._named:
            return "the model takes no attention mask"
        if way == "lengths" and not self._takes_any:
            return "the model takes no sequence lengths"
        return None

    def plan_losses(
        self, passes: Iterable[ForwardPass], on_any_rank: Callable[[bool], bool] = bool
    ) -> list[ForwardPass]:
        """The passes with `in_chunks` set: on all, if that saves memory in one of them.

        Under ZeRO-3 `on_any_rank` makes the ranks agree, which gather the head's weights together.
        """
        passes = list(passes)
        # Without a head that skips positions, logits are of all of them; with it, of those that any sequence needs.
        sizes = (len(one.input_ids_SL) * len(self._kept_columns(one)) for one in passes)
        if on_any_rank(self._loss.saves_memory(max(sizes, default=0))) and self._proves_chunks():
            return [replace(one, in_chunks=True) for one in passes]
        return passes

    def nats(self, one_pass: ForwardPass) -> torch.Tensor:
        """Loss of each target, (N,), float32, in nats. For the backward pass, all must have the same weight."""
        ids_SL, positions_SL = self.to_device(one_pass.input_ids_SL), self.to_device(one_pass.position_ids_SL)
        column_N, length = one_pass.column_N, one_pass.input_ids_SL.shape[1]
        target_N = self.to_device(one_pass.target_N)
        if one_pass.in_chunks:
            place_N = self.to_device(one_pass.sequence_N * length + column_N)
            with self._loss.instead_of_logits(place_N, target_N):
                nats_N: torch.Tensor = self.output(ids_SL, positions_SL)
            return nats_N
        keep_K = self._kept_columns(one_pass)
        # If every position counts, selecting all would only copy, and scatter in the backward pass.
        kept = {"logits_to_keep": self.to_device(keep_K)} if len(keep_K) < length else {}
        logits_SKV = self.output(ids_SL, positions_SL, **kept).logits
        index_N = self.to_device(one_pass.sequence_N * len(keep_K) + np.searchsorted(keep_K, column_N))
        logits_NV = logits_SKV.flatten(0, 1)
        if len(column_N) < len(logits_NV):  # otherwise selecting all would only copy
            logits_NV = logits_NV.index_select(0, index_N)
        return F.cross_entropy(logits_NV.float(), target_N, reduction="none")

    def _kept_columns(self, one_pass: ForwardPass) -> NDArray[np.int64]:
        if self.keeps_logits and len(one_pass.column_N):
            return np.unique(one_pass.column_N)
        return np.arange(one_pass.input_ids_SL.shape[1])

    @torch.no_grad()
    def _proves_chunks(self) -> bool:
        """Whether a few tokens have the same losses in chunks as from the model's logits; measured once."""
        if self._loss_is_right is not None:
            return self._loss_is_right
        ids_1L = np.arange(_PROOF_LENGTH)[None] % self.model.config.get_text_config().vocab_size
        column_N, zero_N = np.arange(_PROOF_LENGTH - 1), np.zeros(_PROOF_LENGTH - 1, dtype=np.int64)
        short = ForwardPass(ids_1L, np.arange(_PROOF_LENGTH)[None], zero_N, column_N, ids_1L[0, 1:], zero_N, ids_1L)
        # Every second target alone, as in a chunk: the others' hidden states must not be missed.
        some = replace(short, sequence_N=zero_N[::2], column_N=column_N[::2], target_N=ids_1L[0, 1::2], in_chunks=True)
        was_training = self.model.training
        self.model.eval()
        try:
            difference = float((self.nats(short)[::2] - self.nats(some)).abs().max())
            fault = None if difference <= _PROOF_TOLERANCE[self.model.dtype] else f"differ by {difference:.2g} nats"
        except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
            self.recover()
            fault = f"fail ({type(error).__name__}: {' '.join(str(error).split())[:160]})"
        self.model.train(was_training)
        self._loss_is_right = fault is None
        if fault:
            name = type(self.model).__name__
            warnings.warn(f"{name}: losses in chunks {fault}; the logits of a pass stay in memory", stacklevel=2)
        return self._loss_is_right

    def recover(self) -> None:
        """Clean up after a failed call: ZeRO-3 gathers parameters as it goes and releases them later."""
        if offload := getattr(getattr(self._call, "optimizer", None), "parameter_offload", None):
            offload.get_param_coordinator().release_and_reset_all(self._call.module)  # type: ignore[attr-defined]

    def output(self, input_ids_SL: torch.Tensor, position_ids_SL: torch.Tensor, **more: Any) -> Any:
        """The result of the model's `forward` for sequences in the layout that the way needs."""
        arguments: dict[str, Any] = {"input_ids": input_ids_SL}
        if self.way != "separate" and "position_ids" in self._named:
            arguments["position_ids"] = position_ids_SL
        if self.way == "mask":
            arguments["attention_mask"] = self._block_diagonal_mask(position_ids_SL)
        if self.way == "lengths":
            arguments |= _sequence_lengths(position_ids_SL)
        # With a cache, transformers does not detect packed examples from positions.
        return self._call(**arguments, **more, use_cache=False)

    def to_device(self, array: np.ndarray) -> torch.Tensor:
        """Indices as a tensor on the model's device."""
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(self._device)

    def _block_diagonal_mask(self, position_ids_SL: torch.Tensor) -> Any:
        """In the form that the model's attention kernel needs; one for each type of layer if there are several."""
        no_embeddings = torch.empty((*position_ids_SL.shape, 0), dtype=self.model.dtype, device=self._device)
        return create_masks_for_generate(self.model.config, no_embeddings, None, None, position_ids_SL)


def _sequence_lengths(position_ids_1L: torch.Tensor) -> dict[str, Any]:
    starts = torch.nonzero(position_ids_1L[0] == 0).flatten()
    ends = torch.nn.functional.pad(starts, (0, 1), value=position_ids_1L.shape[1])
    longest = int(torch.diff(ends).max())
    return {
        "cu_seq_lens_q": ends.int(),
        "cu_seq_lens_k": ends.int(),
        "max_length_q": longest,
        "max_length_k": longest,
        "seq_idx": ((position_ids_1L == 0).cumsum(dim=1) - 1).int(),
    }
