"""Parts of an optimizer step: the learning rate, which parameters decay, and the gradient at ZeRO stage 0.

The learning rate is a pure function of the step, so that a resumed run needs no scheduler state.

Weight decay applies to matrices, but to no bias, gain or state. The number of dimensions is not enough: the experts'
biases of gpt-oss, norms per head, Mamba's `A_log` and RecurrentGemma's gate biases have two, and RWKV's mixing vectors
(1, 1, H) three. So the owner of a parameter, its name, and how many of its dimensions are larger than 1 decide.

At ZeRO stage 0 DeepSpeed neither sums bfloat16 gradients in float32 nor checks a float32 gradient.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from workers.config.training import TrainingConfig
from workers.engine.zero_state import full_shape

# peft keeps the factors of an embedding's adapter in a ParameterDict.
_OF_MATRICES = (torch.nn.Linear, torch.nn.Embedding, torch.nn.modules.conv._ConvNd, torch.nn.ParameterDict)
# Decay rates and skips of state-space layers. RWKV's own begin with `time_`.
_STATES = ("A", "A_log", "D")


def learning_rate(step: int, num_steps: int, training: TrainingConfig) -> float:
    """Learning rate of a step, counted from 1: linear warm-up to the peak, then linear, cosine or constant.

    Linear and cosine reach 0 one step after the last, so that the last step still has an effect.
    """
    num_warmup = math.ceil(training.warmup_fraction * num_steps)
    if step <= num_warmup:
        return training.learning_rate * step / num_warmup
    progress = (step - 1 - num_warmup) / max(num_steps - num_warmup, 1)
    match training.schedule:
        case "constant":
            return training.learning_rate
        case "linear":
            return training.learning_rate * (1.0 - progress)
        case "cosine":
            return training.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters for an optimizer: those that decay, then the others; no empty group."""
    decaying: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, p in module.named_parameters(recurse=False):
            if p.requires_grad and id(p) not in seen:
                seen.add(id(p))
                (decaying if decays(module, path, name, full_shape(p)) else others).append(p)
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def decays(module: torch.nn.Module, path: str, name: str, shape: Sequence[int]) -> bool:
    """Whether a parameter decays, by its module, the module's path, its name in there, and its whole shape."""
    owner = path.rpartition(".")[2]
    if len(shape) < 2 or "bias" in name or "bias" in owner:  # a table of attention biases is an embedding
        return False
    if isinstance(module, _OF_MATRICES):
        return True  # even with a single row
    if sum(size > 1 for size in shape) < 2 or name in _STATES or name.startswith("time_"):
        return False
    is_gain = any("norm" in word.lower() for word in (name, owner, type(module).__name__))
    return not is_gain and "scale" not in name


class WideGradients:
    """Makes autograd accumulate the gradients of bfloat16 parameters in float32."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        for p in self._parameters:
            p.grad_dtype = torch.float32

    def complete(self) -> None:
        """Add zero gradients to unused parameters: DeepSpeed would add bfloat16 ones, which torch refuses."""
        for p in self._parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p, dtype=torch.float32)


class CheckedUpdate:
    """Clips before every step of torch's optimizer, and prevents a step on a gradient that is not finite.

    It is a hook on the optimizer, after the reduction over the ranks, so that all ranks find the same norm.
    """

    def __init__(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        self.norm = 0.0
        """Norm of the last step's gradient, before clipping."""
        self._parameters = list(module.parameters())
        self._max_norm = max_norm if max_norm > 0 else math.inf
        optimizer.register_step_pre_hook(self._before_step)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        from deepspeed.runtime.utils import clip_grad_norm_

        self.norm = float(clip_grad_norm_(self._parameters, self._max_norm))
        if not math.isfinite(self.norm):
            for p in self._parameters:
                p.grad = None  # the optimizer skips parameters without a gradient
