"""Sequences in slices: their columns are divided among N ranks (DeepSpeed Ulysses, arXiv 2309.14509).

The ranks of a group read the same sequences. Everything but attention treats tokens one by one, so that each rank does
it for its own columns. Attention needs all of them: the ranks exchange columns for heads, each computes its share of
the heads over whole sequences, with the model's own kernel and mask, and the results are exchanged back. A target
belongs to the rank of the column that predicts it, so that no label is needed from a neighbour, and a gradient is the
sum over the ranks, as it is without slices.

S sequences of a pass, L columns of a slice, M columns of all slices, N targets.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import PreTrainedConfig
from transformers.modeling_utils import AttentionInterface

from workers.model.forward_pass import ForwardPass

_ARGUMENT = "sequence_slices"
"""Under this name a model hands the slices of a call down to its attention layers."""
_LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Rotary embeddings that depend on the largest position of a call, of which a slice has its own."""

_find_attention = AttentionInterface.get_interface


class Slices:
    """This rank's place among the `size` ranks that share their sequences; building it is a collective.

    Ranks 0 to size - 1 are a group, and so on.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._group, _ = dist.new_subgroups(size)
        self.index = dist.get_rank(self._group)
        self._exchanges: dict[tuple[Any, ...], Any] = {}
        # From now on, calls with the argument exchange; all others are as before.
        setattr(AttentionInterface, "get_interface", _find_exchanging_attention)  # noqa: B010

    @property
    def arguments(self) -> dict[str, Any]:
        """What a model must be called with, beside its slice of the columns, their positions and the whole mask."""
        return {_ARGUMENT: self}

    def cut(self, one_pass: ForwardPass) -> ForwardPass:
        """This rank's columns of a pass, and the targets that they predict.

        Columns are added until all slices are equally long. Nothing before them sees them. Their positions go on, so
        that a sequence of a single example stays one: kernels need no mask for it.
        """
        num_columns = one_pass.input_ids_SL.shape[1]
        length = -(-num_columns // self.size)
        num_added = length * self.size - num_columns
        first = self.index * length
        columns = slice(first, first + length)
        last_S1 = one_pass.position_ids_SL[:, -1:].astype(np.int64)
        positions_SM = np.concatenate([one_pass.position_ids_SL, last_S1 + np.arange(1, num_added + 1)], axis=1)
        is_mine_N = (one_pass.column_N >= first) & (one_pass.column_N < first + length)
        padding = ((0, 0), (0, num_added))
        return replace(
            one_pass,
            input_ids_SL=np.pad(one_pass.input_ids_SL, padding)[:, columns],
            position_ids_SL=positions_SM[:, columns],
            origin_SL=np.pad(one_pass.origin_SL, padding, constant_values=-1)[:, columns],
            whole_position_ids_SM=positions_SM,
            sequence_N=one_pass.sequence_N[is_mine_N],
            column_N=one_pass.column_N[is_mine_N] - first,
            target_N=one_pass.target_N[is_mine_N],
            domain_N=one_pass.domain_N[is_mine_N],
        )

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over the slices, in place; a collective of their ranks."""
        dist.all_reduce(values, group=self._group)
        return values

    def attend(
        self, kernel: Callable[..., Any], module: Any, query: torch.Tensor, key: torch.Tensor, *more: Any, **named: Any
    ) -> Any:
        """A kernel's result for this rank's columns; queries and keys are (S, heads, L, head size)."""
        shape = (kernel, query.shape[0], query.shape[1], key.shape[1], query.shape[3])
        if shape not in self._exchanges:
            self._exchanges[shape] = self._build_exchange(*shape)
        groups = getattr(module, "num_key_value_groups", None)
        try:
            return self._exchanges[shape](module, query, key, *more, **named)
        finally:
            if groups is not None:  # DeepSpeed sets it to that of a rank's heads
                module.num_key_value_groups = groups

    def close(self) -> None:
        dist.destroy_process_group(self._group)

    def _build_exchange(self, kernel: Callable[..., Any], rows: int, heads: int, kv_heads: int, head_size: int) -> Any:
        from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

        return UlyssesSPAttentionHF(
            attn=kernel,
            batch_size=rows,
            attn_head_count=heads,
            attn_head_size=head_size,
            kv_head_count=kv_heads,
            num_hidden_layers=1,  # only its debugging needs to know
            process_group=self._group,
            seq_length_is_variable=True,
        )


def check_slices(config: PreTrainedConfig, num_slices: int, router_loss: bool) -> None:
    """Refuse a model of which the configuration says that its sequences cannot be cut; ValueError.

    Others are found when a run measures them before its first step (`kernel_choice.py`).
    """
    text: Any = config.get_text_config()
    if num_slices == 1:
        return
    heads = getattr(text, "num_attention_heads", None) or 0
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}
    name = f"training.sequence_parallel: {num_slices}"
    if not heads or heads % num_slices or (kv_heads % num_slices and num_slices % kv_heads):
        raise ValueError(
            f"{name}: {text.model_type} has {heads} attention heads, which must be a multiple of it, and {kv_heads} "
            "key-value heads, which must be a multiple or a divisor; choose another number, or 1"
        )
    layers = sorted(set(getattr(text, "layer_types", None) or []))
    if others := [kind for kind in layers if "attention" not in kind or "linear" in kind]:
        raise ValueError(
            f"{name}: {text.model_type} has layers that are not attention over all tokens: {', '.join(others)}; they "
            "read a sequence from its beginning, which a slice does not have; set it to 1"
        )
    if unfit := kinds.intersection(_LENGTH_DEPENDENT):
        raise ValueError(
            f"{name}: the positions of {text.model_type} are rescaled by the length of a sequence (rope_type "
            f"{unfit.pop()}), of which a slice knows only its own; set it to 1"
        )
    if router_loss and any(getattr(text, key, None) for key in ("router_aux_loss_coef", "aux_loss_coef")):
        raise ValueError(
            f"{name}: the auxiliary router loss of {text.model_type} is not a sum over tokens, so slices of a sequence "
            "would change it; set training.router_loss to false, or sequence_parallel to 1"
        )


def _find_exchanging_attention(interface: AttentionInterface, name: str, default: Callable[..., Any]) -> Any:
    return partial(_attend, _find_attention(interface, name, default))


def _attend(kernel: Callable[..., Any], *given: Any, **named: Any) -> Any:
    slices: Slices | None = named.pop(_ARGUMENT, None)
    return kernel(*given, **named) if slices is None else slices.attend(kernel, *given, **named)
