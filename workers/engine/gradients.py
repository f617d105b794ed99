"""Gradients at ZeRO stage 0, where DeepSpeed neither sums bfloat16 in float32 nor checks a float32 gradient."""

import math
from typing import Any

import torch


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
