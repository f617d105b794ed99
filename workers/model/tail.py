"""What a model does after its decoder, for hidden states that are already known: the head, scaling, soft-capping.

It is the family's own code, run in a copy of the model that shares its weights, has no hooks, and whose decoder returns
the given hidden states. C positions, H hidden size, V vocabulary.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from workers.model.loading import find_decoder


def parameters_after_decoder(model: PreTrainedModel) -> list[torch.nn.Parameter]:
    """What is used after the decoder, of which its embeddings may be a part."""
    return Tail(model).parameters


class Tail:
    """What a model does after its decoder. It holds graphs, so nothing in it may refer to what refers to it."""

    def __init__(self, model: PreTrainedModel, output: Any = None) -> None:
        self._decoder, self._given = find_decoder(model), _GivenOutput(output)
        self._aliases: dict[int, tuple[torch.nn.Parameter, torch.nn.Parameter]] = {}
        self._copy: Any = self._copy_of(model)
        used = [pair for pair in self._aliases.values() if pair[0].requires_grad]
        self.parameters = [parameter for parameter, _ in self._aliases.values()]
        self.trained, self.aliases = [parameter for parameter, _ in used], [alias for _, alias in used]

    def losses(self, hidden_CH: torch.Tensor, target_C: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.logits(hidden_CH, target_C).float(), target_C, reduction="none")

    def logits(self, hidden_CH: torch.Tensor, input_ids_C: torch.Tensor) -> torch.Tensor:
        """(C, V); the ids stand for those that the decoder has read."""
        self._given.hidden_1CH = hidden_CH[None]
        # As a view: the gradient of a selected part would be copied into zeros.
        logits_CV: torch.Tensor = self._copy(input_ids=input_ids_C[None], use_cache=False).logits.flatten(0, 1)
        self._given.hidden_1CH = None
        return logits_CV

    def adds_up(self, parameter: torch.nn.Parameter) -> torch.Tensor | None:
        """Zeros to which the gradient of a plain head is added from now on, without a copy; None for other weights.

        Only in float32: torch adds no products of bfloat16 matrices to a float32 one, at least on the CPU.
        """
        head = self._copy.get_output_embeddings()
        is_plain = type(head) is torch.nn.Linear and head.weight is self._alias(parameter)
        if not is_plain or parameter.dtype != torch.float32:
            return None
        total = torch.zeros_like(head.weight)
        weight, bias = head.weight, head.bias
        head.forward = lambda hidden: _AddingLinear.apply(hidden, weight, bias, total)
        return total

    def _copy_of(self, module: torch.nn.Module) -> torch.nn.Module:
        if module is self._decoder:
            return with_forward(module, self._given)
        copied = _without_hooks(module)
        copied._parameters = {name: None if p is None else self._alias(p) for name, p in module._parameters.items()}
        copied._modules = {n: None if child is None else self._copy_of(child) for n, child in module._modules.items()}
        return copied

    def _alias(self, parameter: torch.nn.Parameter) -> torch.nn.Parameter:
        # With hooks on it, a gradient taken here would be changed twice.
        if id(parameter) not in self._aliases:
            alias = torch.nn.Parameter(parameter.detach(), parameter.requires_grad)
            self._aliases[id(parameter)] = (parameter, alias)
        return self._aliases[id(parameter)][1]


def _without_hooks(module: torch.nn.Module) -> torch.nn.Module:
    """A copy that has the same parts and none of the hooks."""
    copied = copy.copy(module)
    copied.__dict__.pop("forward", None)
    hooks = [name for name, value in vars(module).items() if name.endswith("_hooks") and isinstance(value, OrderedDict)]
    copied.__dict__ |= {name: OrderedDict() for name in hooks}
    return copied


class _GivenOutput:
    """In place of a decoder's `forward`."""

    def __init__(self, output: Any) -> None:
        self._output = output
        self.hidden_1CH: torch.Tensor | None = None

    def __call__(self, *given: Any, **named: Any) -> Any:
        output = copy.copy(self._output)
        output.last_hidden_state = self.hidden_1CH
        return output


class _AddingLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, total: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(given, weight)
        ctx.total = total
        return F.linear(given, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        given, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        ctx.total.addmm_(rows.T, given.flatten(0, -2))
        return (
            gradient @ weight if ctx.needs_input_grad[0] else None,
            None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
            None,
        )


def with_forward(module: torch.nn.Module, forward: Callable[..., Any]) -> torch.nn.Module:
    """The module to whoever reads its settings, another function to whoever calls it."""
    copied = _without_hooks(module)
    copied._parameters = dict(module._parameters.items())  # ZeRO-3's own dictionary gathers what is read
    copied.forward = forward
    return copied
