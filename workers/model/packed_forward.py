"""A causal language model called on packed rows, in one of the ways that keep packed examples apart.

    positions   position ids that restart; transformers builds the block-diagonal mask from them, or flash attention its
                sequence lengths, in the families whose code uses them
    mask        that mask, built here with transformers and passed on, in families that accept one
    lengths     all rows as one sequence, and the ends of its examples under the names used by kernels for varied
                lengths (causal-conv1d, mamba-ssm, flash-linear-attention, flash attention)
    separate    every example as a separate sequence: right for any causal model, and slower

`isolation.py` proves which of them is right for a model. S sequences, L tokens, K positions whose next token counts,
N targets, V vocabulary.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.masking_utils import create_masks_for_generate

from workers.data.passes import ForwardPass, single_examples, whole_rows

if TYPE_CHECKING:
    from workers.data.batches import Batch

Way = Literal["positions", "mask", "lengths", "separate"]


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

    def why_not(self, way: Way) -> str | None:
        """Why the model cannot be called in this way, or None."""
        if way in ("positions", "lengths") and "position_ids" not in self._named:
            return "the model takes no positions"
        if way == "mask" and "attention_mask" not in self._named:
            return "the model takes no attention mask"
        if way == "lengths" and not self._takes_any:
            return "the model takes no sequence lengths"
        return None

    def nats(self, one_pass: ForwardPass) -> torch.Tensor:
        """Loss of each target, (N,), float32, in nats."""
        column_N, length = one_pass.column_N, one_pass.input_ids_SL.shape[1]
        keep_K = np.unique(column_N) if self.keeps_logits and len(column_N) else np.arange(length)
        # If every position counts, selecting all would only copy, and scatter in the backward pass.
        kept = {"logits_to_keep": self.to_device(keep_K)} if len(keep_K) < length else {}
        ids_SL, positions_SL = self.to_device(one_pass.input_ids_SL), self.to_device(one_pass.position_ids_SL)
        logits_SKV = self.output(ids_SL, positions_SL, **kept).logits
        index_N = self.to_device(one_pass.sequence_N * len(keep_K) + np.searchsorted(keep_K, column_N))
        logits_NV = logits_SKV.flatten(0, 1)
        if len(column_N) < len(logits_NV):  # otherwise selecting all would only copy
            logits_NV = logits_NV.index_select(0, index_N)
        return F.cross_entropy(logits_NV.float(), self.to_device(one_pass.target_N), reduction="none")

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
