"""Which parameters weight decay applies to: matrices, but no bias, gain or state.

The number of dimensions is not enough: the experts' biases of gpt-oss, norms per head, Mamba's `A_log` and
RecurrentGemma's gate biases have two, and RWKV's mixing vectors (1, 1, H) three. So the owner of a parameter, its name,
and how many of its dimensions are larger than 1 decide.
"""

from collections.abc import Sequence
from typing import Any

import torch

from workers.engine.zero_state import full_shape

# peft keeps the factors of an embedding's adapter in a ParameterDict.
_OF_MATRICES = (torch.nn.Linear, torch.nn.Embedding, torch.nn.modules.conv._ConvNd, torch.nn.ParameterDict)
# Decay rates and skips of state-space layers. RWKV's own begin with `time_`.
_STATES = ("A", "A_log", "D")


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
