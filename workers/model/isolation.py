"""The proof that packed examples do not influence each other, with a model's own weights, dtype and kernels.

Before a run's first step, a packed row is compared with its examples alone: first a short one, three examples of a few
tokens, in every way until one is right. A pass contains it twice, because some kernels separate examples only if a pass
is one row, the second time with the first example's tokens reversed. The loss of each example must be what it is alone,
in training and in evaluation mode, and the reversed tokens must not change the loss of later examples. Then the longest
of the stores' first packed rows is tried in that way: two forward passes, which also cover what only long rows reach
(windows and chunks of attention).
The first way that passes is used. The last one, every example as a separate sequence, is wrong only if later tokens
change the loss of earlier ones, in models that are not causal; those are refused.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from workers.data.batches import Batch, build_batch
from workers.data.store import TokenStore
from workers.model.forward_pass import Way, passes_over
from workers.model.packed_forward import PackedForward

WAYS: tuple[Way, ...] = ("positions", "mask", "lengths", "separate")
"""In the order in which they are tried, cheapest first."""

_DESCRIPTIONS: dict[Way, str] = {
    "positions": "by their positions",
    "mask": "by a block-diagonal mask",
    "lengths": "by their lengths",
    "separate": "by giving every example a separate sequence, which is slower",
}
# Mean difference over an example's tokens, nats. In bfloat16 a row and its examples alone are rounded differently
# (0.004 to 0.02 on small models of a hundred families), but rows of one shape that differ in a masked example hardly.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
_INFLUENCE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.01}
_SHORT_LENGTHS = (24, 17, 9)
_ROWS_LOOKED_AT = 256

Losses = NDArray[np.float64]
"""(B, L) loss of each token of the rows in nats; 0 for the first token of an example."""


class PackingError(ValueError):
    """No way of packing gives the model correct losses; the message is for the user."""


@dataclass(frozen=True)
class Isolation:
    """How packed examples are kept apart, and what was measured."""

    way: Way
    difference_nats: float | None
    """Mean change of a token's loss by packing, for the worst example; None without a row of several examples."""
    num_tokens: int  # tokens of the measured row
    refused: dict[str, str]  # the ways tried before, and why they were refused
    attention: str = ""  # the kernel with which this was measured
    refused_attention: dict[str, str] = field(default_factory=dict)  # faster kernels, and why they were refused

    def __str__(self) -> str:
        refused = "".join(f"; not {kernel}: {why}" for kernel, why in self.refused_attention.items())
        return f"{self._way()}; attention: {self.attention}{refused}" if self.attention else self._way()

    def _way(self) -> str:
        if self.difference_nats is None:
            return "every sequence holds a single example, so there is nothing to keep apart"
        measured = f"{self.difference_nats:.1e} nats per token at most, on a sequence of {self.num_tokens:,} tokens"
        refused = "; ".join(f"not {_DESCRIPTIONS[way]}: {why}" for way, why in self.refused.items())  # type: ignore[index]
        text = f"packed examples are kept apart {_DESCRIPTIONS[self.way]} (difference from each alone: {measured})"
        return f"{text}; {refused}" if refused else text


def find_proof_row(stores: Iterable[TokenStore]) -> Batch | None:
    """The longest of the stores' first rows with several examples, with all tokens as targets; None without one."""
    longest: tuple[int, TokenStore, int] | None = None
    for store in stores:
        packed = np.flatnonzero(store.row_examples > 1)[:_ROWS_LOOKED_AT]  # rows of one long example come first
        if len(packed):
            row = int(packed[np.argmax(store.row_lengths[packed])])
            if longest is None or store.row_lengths[row] > longest[0]:
                longest = int(store.row_lengths[row]), store, row
    if longest is None:
        return None
    batch = build_batch([longest[1]], [(0, longest[2])])
    return replace(batch, loss_mask_BL=batch.position_ids_BL > 0)


@torch.no_grad()
def prove_isolation(
    forward: PackedForward, row: Batch | None, over_ranks: Callable[[float], float] = lambda difference: difference
) -> Isolation:
    """Find the first way in which the model is right, and make `forward` use it.

    `row` comes from `find_proof_row`, the same on every rank; `over_ranks` is the maximum over the ranks.

    Raises:
        PackingError: no way is right.
    """
    if row is None:
        return Isolation("positions", None, 0, {})
    proof = _Proof(forward, row, over_ranks)
    refused: dict[str, str] = {}
    with without_noise(forward.model):
        for way in WAYS:
            fault = forward.why_not(way) or proof.find_fault(way)
            if fault is None:
                return Isolation(way, proof.difference, proof.num_tokens, refused)
            refused[way] = fault
    faults = "; ".join(f"{way}: {why}" for way, why in refused.items())
    raise PackingError(
        f"data.packing: this model's losses depend on neighbouring tokens, even on later ones ({faults}); "
        "it is not a causal language model that raymix can train"
    )


CALL_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, ImportError)
"""What a model raises if it does not know an argument, or has no kernel for it."""


class _Proof:
    """A packed row and a short one, and the losses of their examples alone."""

    def __init__(self, forward: PackedForward, row: Batch, over_ranks: Callable[[float], float]) -> None:
        self._forward = forward
        self._over_ranks = over_ranks
        self._tolerance = TOLERANCE[forward.model.dtype]
        short = shorten(row)
        self._row, self._short = row, _twice(short)
        self._is_longer = row.input_ids_BL.size > short.input_ids_BL.size
        self._short_alone: Losses | None = None
        self._alone: Losses | None = None
        self.difference = 0.0
        self.num_tokens = row.input_ids_BL.size

    def find_fault(self, way: Way) -> str | None:
        """What is wrong with a way, or None."""
        if self._short_alone is None:
            self._short_alone = self._define()
            if not np.isfinite(self._short_alone).all():
                raise PackingError(
                    "the model's loss on a single example is NaN or infinite before the first step; check the base "
                    "model and, with LoRA, use_dora (a row of zeros has no direction)"
                )
        try:
            for is_training in (False, True):
                packed = self._losses(self._short, way, is_training=is_training)
                self.difference = self._compare(self._short, packed, self._short_alone)
                if not self.difference <= self._tolerance:
                    return f"an example's loss differs by {self.difference:.2g} nats per token"
            influence = self._compare(self._short, packed[1:], packed[:1], first_example=1)
            if not influence <= _INFLUENCE_TOLERANCE[self._forward.model.dtype]:
                return f"other tokens in one example change another's loss by {influence:.2g} nats per token"
            return self._find_fault_of_long_row(way) if self._is_longer and way != "separate" else None
        except CALL_ERRORS as error:
            self._forward.recover()
            return f"the model refuses it ({type(error).__name__}: {' '.join(str(error).split())[:160]})"

    def _define(self) -> Losses:
        """The definition: whole examples, one per pass, without padding; it also exposes models that are not causal."""
        try:
            return self._losses(self._short, "separate", cut=False, tokens_per_pass=1)
        except CALL_ERRORS as error:
            raise PackingError(
                f"the model cannot be called on a single example ({type(error).__name__}: {error}); check that "
                "transformers and peft support this family with this training.strategy"
            ) from error

    def _find_fault_of_long_row(self, way: Way) -> str | None:
        if self._alone is None:
            self._alone = self._losses(self._row, "separate")
        self.difference = self._compare(self._row, self._losses(self._row, way), self._alone)
        if not self.difference <= self._tolerance:
            return f"in a sequence of {self.num_tokens:,} tokens a loss differs by {self.difference:.2g} nats per token"
        return None

    def _losses(self, batch: Batch, way: Way, **more: Any) -> Losses:
        return token_losses(self._forward, batch, way, **more)

    def _compare(self, batch: Batch, ours_BL: Losses, theirs_BL: Losses, first_example: int = 0) -> float:
        return self._over_ranks(worst_difference(batch, ours_BL, theirs_BL, first_example))


@torch.no_grad()
def token_losses(
    forward: PackedForward,
    batch: Batch,
    way: Way,
    *,
    is_training: bool = True,
    cut: bool = True,
    tokens_per_pass: int | None = None,
) -> Losses:
    """Of a model without noise; it keeps the way and the mode."""
    forward.way = way
    forward.model.train(is_training)
    losses_T = torch.zeros(batch.input_ids_BL.size, dtype=torch.float64)
    passes = passes_over(batch, way, len(batch.domain_B), cut=cut, tokens_per_pass=tokens_per_pass)
    for one_pass in forward.plan(passes):
        losses_T[torch.from_numpy(one_pass.target_origin_N)] = forward.nats(one_pass).double().cpu()
    return forward.sum_over_slices(losses_T).cpu().numpy().reshape(batch.input_ids_BL.shape)


def worst_difference(batch: Batch, ours_BL: Losses, theirs_BL: Losses, first_example: int = 0) -> float:
    """Mean difference of the most different example, over all rows, from `first_example` of a row on."""
    example_L = np.cumsum(batch.position_ids_BL[0] == 0) - 1  # the same in all rows
    is_target_L = batch.loss_mask_BL[0]
    counts = np.bincount(example_L[is_target_L])
    means = [
        np.bincount(example_L[is_target_L], weights=difference_L[is_target_L]) / np.maximum(counts, 1)
        for difference_L in np.abs(ours_BL - theirs_BL)
    ]
    return float(np.max(np.array(means)[:, first_example:]))


def shorten(row: Batch) -> Batch:
    """The beginnings of the row's first examples, as a new row."""
    starts = np.flatnonzero(row.position_ids_BL[0] == 0)
    ends = np.append(starts[1:], row.position_ids_BL.shape[1])
    pieces = [
        np.arange(start, min(end, start + length))
        for start, end, length in zip(starts, ends, _SHORT_LENGTHS)  # noqa: B905
    ]
    columns = np.concatenate(pieces)
    return replace(
        row,
        input_ids_BL=row.input_ids_BL[:, columns],
        position_ids_BL=row.position_ids_BL[:, columns],
        loss_mask_BL=row.loss_mask_BL[:, columns],
    )


def _twice(row: Batch) -> Batch:
    """The row, followed by the same with its first example's tokens reversed."""
    end = int(np.flatnonzero(row.position_ids_BL[0] == 0)[1])
    input_ids_BL = np.repeat(row.input_ids_BL, 2, axis=0)
    input_ids_BL[1, :end] = input_ids_BL[1, :end][::-1]
    return replace(
        row,
        input_ids_BL=input_ids_BL,
        position_ids_BL=np.repeat(row.position_ids_BL, 2, axis=0),
        loss_mask_BL=np.repeat(row.loss_mask_BL, 2, axis=0),
        domain_B=np.repeat(row.domain_B, 2),
        row_B=np.repeat(row.row_B, 2),
    )


@contextmanager
def without_noise(model: PreTrainedModel) -> Iterator[None]:
    """Turn off dropout and router jitter; afterwards restore them and the model's mode."""
    was_training = model.training
    holders = [*model.modules(), model.config, model.config.get_text_config()]  # some families read their config
    noisy = [
        (module, name, value)
        for module in holders
        for name, value in vars(module).items()
        if isinstance(value, float)
        and (any(word in name for word in ("drop", "jitter")) or (name == "p" and isinstance(module, torch.nn.Dropout)))
    ]
    for module, name, _ in noisy:
        setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in noisy:
            setattr(module, name, value)
        model.train(was_training)
