"""The losses of a pass's targets in chunks, so that the logits of all targets are never in memory at once.

The decoder runs once, as always. What a family does after it runs chunk by chunk (`tail.py`). A chunk's gradients are
computed with its losses, so that nothing is computed twice; this is possible because every target of a step has the
same weight in its loss.

torch's `linear_cross_entropy` knows no soft-capping, scaling or adapters; without a reduction it rounds each loss to
the dtype of the model and computes the logits twice.

N targets, C of them in a chunk, T tokens of all sequences, H hidden size, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from workers.model.loading import find_decoder
from workers.model.tail import Tail, parameters_after_decoder, with_forward

LOGIT_BYTES = 12
"""For each logit outside chunks, in float32: its logarithm, and the gradients of the loss and of the logit."""
CHUNK_LOGIT_BYTES = 10
"""For each logit of a chunk: itself in bfloat16 and float32, and its logarithm, which its gradient replaces."""
LOGITS_LIMIT = 768 * 2**20
"""Bytes of the logits of a chunk."""
_NAME = "loss_in_chunks"


def attach_chunked_loss(model: PreTrainedModel) -> "ChunkedLoss":
    """Make the computation a part of the model, for wrappers that treat modules; it has no weights of its own."""
    model.add_module(_NAME, ChunkedLoss(model))
    return find_chunked_loss(model)


def find_chunked_loss(model: PreTrainedModel) -> "ChunkedLoss":
    """The one that is a part of the model, otherwise a new one."""
    return model._modules.get(_NAME) or ChunkedLoss(model)  # type: ignore[return-value]


def gradient_bytes(parameters: Iterable[torch.nn.Parameter]) -> int:
    """What the gradients of these take beside a chunk's logits: a sum in float32, and bfloat16 ones of the chunk."""
    trained = (p for p in parameters if p.requires_grad)
    return sum(getattr(p, "ds_numel", p.numel()) * (4 if p.dtype == torch.float32 else 4 + 2) for p in trained)


class ChunkedLoss(torch.nn.Module):
    """Turns hidden states into losses. As a part of the model, it tells DeepSpeed when to gather the head's weights."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, because it is no part of this module

    @property
    def chunk_size(self) -> int:
        """Targets whose logits are in memory together."""
        return max(LOGITS_LIMIT // (CHUNK_LOGIT_BYTES * self._model[0].config.get_text_config().vocab_size), 1)

    @cached_property
    def head_gradient_bytes(self) -> int:
        """Memory for the gradients of what is trained after the decoder, while there are chunks."""
        with suppress(ValueError):  # without a known decoder there are no chunks
            return gradient_bytes(parameters_after_decoder(self._model[0]))
        return 0

    def saves_memory(self, num_logits: int) -> bool:
        """Whether the logits of so many positions take more memory than chunks."""
        size = num_logits * LOGIT_BYTES * self._model[0].config.get_text_config().vocab_size
        return size > LOGITS_LIMIT + self.head_gradient_bytes

    @contextmanager
    def instead_of_logits(self, place_N: torch.Tensor, target_N: torch.Tensor) -> Iterator[None]:
        """Make the model's `forward` return the loss of each target, (N,), float32, in nats.

        `place_N` is the position, in all sequences one after the other, that predicts the target.
        """
        model: Any = self._model[0]

        def forward(*given: Any, **named: Any) -> torch.Tensor:
            self._output = self._run_decoder(*given, **named)
            hidden_TH = self._output.last_hidden_state.flatten(0, 1)
            # If every position counts, selecting all would only copy.
            hidden_NH = hidden_TH.index_select(0, place_N) if len(place_N) < len(hidden_TH) else hidden_TH
            losses_N: torch.Tensor = self(hidden_NH, target_N)
            del self._output
            return losses_N

        model.forward = forward
        try:
            yield
        finally:
            del model.forward

    def forward(self, hidden_NH: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
        """Loss of each target, (N,), in nats. For the backward pass, all must have the same weight."""
        model = self._model[0]
        if not torch.is_grad_enabled():
            losses = Tail(model, self._output).losses
            chunks = zip(hidden_NH.split(self.chunk_size), target_N.split(self.chunk_size), strict=True)
            return torch.cat([losses(hidden_CH, target_C) for hidden_CH, target_C in chunks])
        tail = Tail(model, self._output)
        result: torch.Tensor = _LossesAndGradients.apply(tail, self.chunk_size, hidden_NH, target_N, *tail.trained)
        return result

    def _run_decoder(self, *given: Any, **named: Any) -> Any:
        """The decoder's output, computed by the model's own `forward` without its head."""
        model: Any = self._model[0]
        outputs: list[Any] = []
        watch = find_decoder(model).register_forward_hook(lambda module, given, output: outputs.append(output))
        parent, name = _find_parent(model, model.get_output_embeddings())
        head, vocab_size = parent.get_submodule(name), model.config.get_text_config().vocab_size
        parent._modules[name] = with_forward(head, lambda hidden, *more: hidden.new_zeros(1, 1, vocab_size))
        try:
            type(model).forward(model, *given, **named)
        finally:
            parent._modules[name] = head
            watch.remove()
        return outputs[-1]


class _LossesAndGradients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        tail: Tail,
        chunk_size: int,
        hidden_NH: torch.Tensor,
        target_N: torch.Tensor,
        *trained: torch.nn.Parameter,
    ) -> torch.Tensor:
        losses_N = torch.empty(target_N.shape, dtype=torch.float32, device=target_N.device)
        needs_hidden = ctx.needs_input_grad[2]
        gradient_NH = torch.empty_like(hidden_NH) if needs_hidden else None
        sums = [tail.adds_up(p) for p in trained]
        for start in range(0, max(len(target_N), 1), chunk_size):
            part = slice(start, start + chunk_size)
            hidden_CH = hidden_NH[part].detach().requires_grad_(needs_hidden)
            wanted = [hidden_CH, *tail.aliases] if needs_hidden else tail.aliases
            losses_N[part], gradients = _of_chunk(tail, hidden_CH, target_N[part], wanted)
            if gradient_NH is not None:
                gradient_NH[part] = gradients.pop(0)
            _add(sums, gradients)
            del gradients  # which would stay in memory beside the next chunk's
        ctx.gradients = (gradient_NH, sums)
        ctx.dtypes = [p.dtype for p in trained]
        return losses_N

    @staticmethod
    def backward(ctx: Any, weight_N: torch.Tensor) -> Any:
        gradient_NH, sums = ctx.gradients
        del ctx.gradients
        weight = weight_N[0] if len(weight_N) else weight_N.new_ones(())
        if any(weight_N.stride()) and not (weight_N == weight).all():
            raise ValueError("the losses of targets in chunks can only be summed with the same weight")
        hidden = None if gradient_NH is None else gradient_NH.mul_(weight)
        of_trained = (s if s is None else s.mul_(weight).to(d) for s, d in zip(sums, ctx.dtypes, strict=True))
        return None, None, hidden, None, *of_trained


def _of_chunk(
    tail: Tail, hidden_CH: torch.Tensor, target_C: torch.Tensor, wanted: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, list[Any]]:
    """Losses, (C,), and the gradients of their sum, None for what does not change it.

    As cross_entropy and autograd compute them, except that the gradient of the logits takes the place of their
    logarithm.
    """
    with torch.enable_grad():
        logits_CV = tail.logits(hidden_CH, target_C)
    gradient_CV = logits_CV.detach().float().log_softmax(-1)
    place_C1 = target_C[:, None]
    losses_C = -gradient_CV.gather(1, place_C1)[:, 0]
    gradient_CV.exp_().scatter_add_(1, place_C1, gradient_CV.new_full(place_C1.shape, -1.0))
    # A module beside the head may be trained in other ways only.
    return losses_C, list(torch.autograd.grad(logits_CV, wanted, gradient_CV.to(logits_CV.dtype), allow_unused=True))


def _add(sums: list[torch.Tensor | None], gradients: list[torch.Tensor | None]) -> None:
    for i, gradient in enumerate(gradients):
        if gradient is not None:
            total = sums[i]
            sums[i] = gradient.float() if total is None else total.add_(gradient)


def _find_parent(model: torch.nn.Module, wanted: torch.nn.Module) -> tuple[torch.nn.Module, str]:
    for module in model.modules():
        for name, child in module._modules.items():
            if child is wanted:
                return module, name
    raise ValueError(f"{type(model).__name__}: transformers does not say which part is the head")
