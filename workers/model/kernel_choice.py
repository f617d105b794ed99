"""The fastest kernels that are right: each is measured on the model itself before the first step.

The model comes with the plain kernel, which works anywhere. With any other one, the examples of a packed row, each
alone, must have the losses that they have with the plain one, and then packed examples must stay apart
(`isolation.py`): flash attention may silently leave out what it does not know, such as attention sinks. The next kernel
is tried if one is not right, or if packed examples would have to be computed separately, which costs more than a faster
kernel gains.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from workers.data.batches import Batch, MeasuredRow, collate
from workers.model.isolation import (
    CALL_ERRORS,
    TOLERANCE,
    Isolation,
    PackingError,
    prove_isolation,
    token_losses,
    without_noise,
    worst_difference,
)
from workers.model.liger import apply_liger
from workers.model.packed_forward import PackedForward

_SLICED_LENGTH = 8192  # tokens, more than most windows of attention
_PROBE_LENGTH = 256  # tokens, if no sequence holds several examples


def prove_kernel(
    forward: PackedForward,
    row: Batch | None,
    kernels: Sequence[str],
    over_ranks: Callable[[float], float] = lambda difference: difference,
) -> Isolation:
    """Set the first kernel that is right, and the first way of packing that is right with it.

    Args:
        row, over_ranks: as for `prove_isolation`.
        kernels: from `attention_kernels`, the same on all ranks.

    Raises:
        PackingError: no way of packing is right with the last kernel.
        ValueError: the only kernel is not right.
    """
    plain = forward.model.config._attn_implementation
    others = [kernel for kernel in kernels if kernel != plain]
    refused: dict[str, str] = {}
    probe = _Probe(forward, row, over_ranks) if others else None
    for kernel in others:
        assert probe is not None
        isolation = probe.find_fault(partial(_set_attention, forward.model, kernel)) or _prove(forward, row, over_ranks)
        if isinstance(isolation, Isolation) and (isolation.way != "separate" or kernel == kernels[-1]):
            return replace(isolation, attention=kernel, refused_attention=refused)
        fault = isolation if isinstance(isolation, str) else "packed examples would have to be computed separately"
        if kernel == kernels[-1]:
            raise ValueError(f"model.attention: {kernel} is not right for this model: {fault}; use auto")
        refused[kernel] = fault
        forward.model.set_attn_implementation(plain)
    return replace(prove_isolation(forward, row, over_ranks), attention=plain, refused_attention=refused)


def prove_liger(
    forward: PackedForward, row: Batch | None, over_ranks: Callable[[float], float] = lambda difference: difference
) -> None:
    """Make the model use the kernels of liger-kernel; ValueError if they change its losses."""
    if fault := _Probe(forward, row, over_ranks).find_fault(partial(apply_liger, forward.model)):
        raise ValueError(f"model.liger: its kernels are not right for this model: {fault}; set it to false")


def prove_slices(
    forward: PackedForward, row: Batch | None, over_ranks: Callable[[float], float] = lambda difference: difference
) -> None:
    """Refuse a model whose losses change if its sequences are cut; ValueError.

    Whole, a sequence might not fit on one rank: its beginning is measured.
    """
    slices, forward.slices = forward.slices, None
    assert slices is not None
    probe = _Probe(forward, row and _beginning(row), over_ranks)
    if fault := probe.find_fault(partial(setattr, forward, "slices", slices)):
        raise ValueError(
            f"training.sequence_parallel: {slices.size} slices of a sequence are not right for this model, which may "
            f"have layers other than the attention common to families: {fault}; set it to 1"
        )


def _beginning(row: Batch) -> Batch:
    arrays = (field.name for field in fields(row) if field.name.endswith("_BL"))
    return replace(row, **{name: getattr(row, name)[:, :_SLICED_LENGTH] for name in arrays})


def _prove(forward: PackedForward, row: Batch | None, over_ranks: Callable[[float], float]) -> Isolation | str:
    """How packed examples are kept apart, or why they are not."""
    try:
        return prove_isolation(forward, row, over_ranks)
    except PackingError as error:
        return str(error)


class _Probe:
    """Losses of single examples, with which those after a change are compared."""

    def __init__(self, forward: PackedForward, row: Batch | None, over_ranks: Callable[[float], float]) -> None:
        self._forward, self._over_ranks = forward, over_ranks
        self._batch = row or _batch_of_one(forward.model.config.get_text_config())
        with without_noise(forward.model):
            self._expected = token_losses(forward, self._batch, "separate", is_training=False)

    def find_fault(self, change: Callable[[], None]) -> str | None:
        """Why the model must not be changed like this, which is done; None if its losses stay."""
        model, difference = self._forward.model, np.inf
        try:
            change()
            self._train()
            with without_noise(model):
                losses = token_losses(self._forward, self._batch, "separate", is_training=False)
            difference = worst_difference(self._batch, losses, self._expected)
            fault = f"an example's loss differs by {difference:.2g} nats per token"
        except CALL_ERRORS as error:
            self._forward.recover()
            fault = f"it fails ({type(error).__name__}: {' '.join(str(error).split())[:160]})"
        is_right = difference <= TOLERANCE[model.dtype]  # NaN is not
        if self._over_ranks(0.0 if is_right else 1.0):
            return "it is not right on another rank" if is_right else fault
        return None

    @torch.no_grad()
    def _train(self) -> None:
        """A pass with the model's dropout, which some kernels refuse."""
        self._forward.model.train()
        ids_1L = self._forward.to_device(self._batch.input_ids_BL[:1, :2])
        self._forward.output(ids_1L, self._forward.to_device(np.arange(ids_1L.shape[1])[None]))


def _set_attention(model: PreTrainedModel, kernel: str) -> None:
    before = model.config._attn_implementation
    model.set_attn_implementation(kernel)
    if model.config._attn_implementation == before:
        raise RuntimeError(f"transformers stays with {before}")


def _batch_of_one(config: Any) -> Batch:
    """One example of different tokens."""
    length = min(_PROBE_LENGTH, getattr(config, "max_position_embeddings", None) or _PROBE_LENGTH)
    positions_L = np.arange(length)
    row = MeasuredRow(0, 0, positions_L % config.vocab_size, positions_L, positions_L > 0, np.full(length, -1))
    return collate([row], num_domains=1)[0]
