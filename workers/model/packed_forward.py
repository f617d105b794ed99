"""Batches of packed rows through a causal language model: the ways that keep packed examples apart.

    positions   position ids that restart; transformers builds the block-diagonal mask from them, or flash attention its
                sequence lengths, in the families whose code uses them
    mask        that mask, built here with transformers and passed on, in families that accept one
    lengths     all rows as one sequence, and the ends of its examples under the names used by kernels for varied
                lengths (causal-conv1d, mamba-ssm, flash-linear-attention, flash attention)
    separate    every example as a separate sequence: right for any causal model, and slower

All have the same targets, and `isolation.py` proves which is right for a model. Where the logits of a pass would take
too much memory, its losses are computed in chunks (`chunked_loss.py`), if that is right for the model. A rank may have
only slices of the sequences (`slices.py`).

S sequences of the pass, L tokens, M tokens of all slices, K positions whose next token counts, N targets, V vocabulary.
"""

import inspect
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.masking_utils import create_masks_for_generate

from workers.model.chunked_loss import find_chunked_loss
from workers.model.forward_pass import ForwardPass, Way
from workers.model.slices import Slices

_PROOF_LENGTH = 8  # tokens
_PROOF_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}  # nats; a shape of its own is rounded in its own way


class PackedForward:
    """Calls a model on forward passes, possibly through a wrapper (DeepSpeed's engine) as `call`.

    With `slices` this rank takes its part of every pass that is planned.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        model: PreTrainedModel,
        device: torch.device,
        way: Way = "positions",
        slices: Slices | None = None,
    ) -> None:
        self._call = call
        self.model = model
        self._device = device
        self.way: Way = way
        self.slices = slices
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

    def plan(self, passes: Iterable[ForwardPass], on_any_rank: Callable[[bool], bool] = bool) -> list[ForwardPass]:
        """This rank's part of the passes, with `in_chunks` set: on all, if that saves memory in one of them.

        Under ZeRO-3 `on_any_rank` makes the ranks agree, which gather the head's weights together.
        """
        passes = [one if self.slices is None else self.slices.cut(one) for one in passes]
        # Without a head that skips positions, logits are of all of them; with it, of those that any sequence needs.
        sizes = (len(one.input_ids_SL) * len(self._kept_columns(one)) for one in passes)
        if on_any_rank(self._loss.saves_memory(max(sizes, default=0))) and self._proves_chunks():
            return [replace(one, in_chunks=True) for one in passes]
        return passes

    def nats(self, one_pass: ForwardPass) -> torch.Tensor:
        """Loss of each target, (N,), float32, in nats. For the backward pass, all must have the same weight."""
        ids_SL, positions_SL = self.to_device(one_pass.input_ids_SL), self.to_device(one_pass.position_ids_SL)
        whole = one_pass.whole_position_ids_SM
        whole_SM = None if whole is None else self.to_device(whole)
        column_N, length = one_pass.column_N, one_pass.input_ids_SL.shape[1]
        target_N = self.to_device(one_pass.target_N)
        if one_pass.in_chunks:
            place_N = self.to_device(one_pass.sequence_N * length + column_N)
            with self._loss.instead_of_logits(place_N, target_N):
                nats_N: torch.Tensor = self.output(ids_SL, positions_SL, whole_SM=whole_SM)
            return nats_N
        keep_K = self._kept_columns(one_pass)
        # If every position counts, selecting all would only copy, and scatter in the backward pass.
        kept = {"logits_to_keep": self.to_device(keep_K)} if len(keep_K) < length else {}
        logits_SKV = self.output(ids_SL, positions_SL, whole_SM=whole_SM, **kept).logits
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

    def output(
        self,
        input_ids_SL: torch.Tensor,
        position_ids_SL: torch.Tensor,
        whole_SM: torch.Tensor | None = None,
        **more: Any,
    ) -> Any:
        """The result of the model's `forward` for sequences in the layout that the way needs.

        For slices, `whole_SM` are the positions of all columns.
        """
        arguments: dict[str, Any] = {"input_ids": input_ids_SL}
        if self.way != "separate" and "position_ids" in self._named:
            arguments["position_ids"] = position_ids_SL
        if whole_SM is not None:
            assert self.slices is not None
            arguments |= {"position_ids": position_ids_SL} | self.slices.arguments
            position_ids_SL = whole_SM  # attention is over all columns, of which transformers sees a part
        if self.way == "mask" or (whole_SM is not None and self.way != "lengths"):
            arguments["attention_mask"] = self._block_diagonal_mask(position_ids_SL)
        if self.way == "lengths":
            arguments |= _sequence_lengths(position_ids_SL)
        # With a cache, transformers does not detect packed examples from positions.
        return self._call(**arguments, **more, use_cache=False)

    def sum_over_slices(self, values: torch.Tensor) -> torch.Tensor:
        """Of this rank's sequences, what their slices add up to; a collective of the ranks that have them."""
        return values if self.slices is None else self.slices.sum(values.to(self._device))

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
