"""The auxiliary loss of mixture-of-experts models, which keeps their routers from sending all tokens to a few experts.

It is the family's function in transformers (Switch Transformer, arXiv 2101.03961, equations 4 to 6, over all layers
together) of its routers' logits for all tokens except padding, times the coefficient in the model's config. The logits
are read from the routers: transformers' own sum would count padding and accepts no mask of packed rows.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")
_FUNCTION = "load_balancing_loss_func"
_PARAMETERS = ["gate_logits", "num_experts", "top_k", "attention_mask"]


class RouterLoss:
    """Watches a model's routers; it keeps their logits only while `watching`."""

    def __init__(self, model: PreTrainedModel, coefficient: float, routers: list[tuple[torch.nn.Module, int]]) -> None:
        self.coefficient = coefficient
        self._model = model
        self._function: Callable[..., Any] = getattr(sys.modules[type(model).__module__], _FUNCTION)
        self._logits: list[torch.Tensor] | None = None
        for router, index in routers:
            router.register_forward_hook(self._keep(index))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the logits of this forward pass, but not those that activation checkpointing recomputes later."""
        self._logits = []
        try:
            yield
        finally:
            self._logits = None

    def value(self, is_used_SL: NDArray[np.bool_]) -> torch.Tensor:
        """The weighted loss of the last forward pass; `is_used_SL` is False for padding."""
        logits = tuple(kept.flatten(0, -2) for kept in self._logits or ())
        is_used = torch.from_numpy(is_used_SL).to(logits[0].device)
        model: Any = self._model
        return self.coefficient * self._function(logits, model.num_experts, model.num_experts_per_tok, is_used)

    def _keep(self, index: int) -> Callable[..., None]:
        def hook(module: torch.nn.Module, given: Any, output: Any) -> None:
            if self._logits is not None:
                self._logits.append(output if isinstance(output, torch.Tensor) else output[index])

        return hook


def find_router_loss(model: PreTrainedModel) -> RouterLoss | None:
    """The auxiliary loss of the model's family; None if its config or transformers has none."""
    coefficient, routers = router_loss_coefficient(model), _find_routers(model)
    function = getattr(sys.modules[type(model).__module__], _FUNCTION, None)
    if not coefficient or not routers or function is None:
        return None
    has_sizes = hasattr(model, "num_experts") and hasattr(model, "num_experts_per_tok")
    if not has_sizes or list(inspect.signature(function).parameters) != _PARAMETERS:
        return None
    return RouterLoss(model, coefficient, routers)


def describe_router_loss(model: Any) -> str | None:
    """A line on whether it is trained, for a model that peft may wrap; None if its config has none."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    coefficient = router_loss_coefficient(base)
    if not coefficient:
        return None
    if find_router_loss(base) is None:
        return (
            "the model's config has an auxiliary router loss, but transformers computes none here, so it is not trained"
        )
    return f"the auxiliary router loss is trained, with the coefficient {coefficient:g} from the model's config"


def router_loss_coefficient(model: PreTrainedModel) -> float:
    config = model.config.get_text_config()
    return next((float(getattr(config, name)) for name in _COEFFICIENTS if getattr(config, name, None)), 0.0)


def _find_routers(model: PreTrainedModel) -> list[tuple[torch.nn.Module, int]]:
    """The modules from which transformers takes router logits, and the index of that output."""
    from transformers.utils.output_capturing import OutputRecorder

    declared: Any = (getattr(model.base_model, "_can_record_outputs", None) or {}).get("router_logits", [])
    recorders = [
        one if isinstance(one, OutputRecorder) else OutputRecorder(one)
        for one in (declared if isinstance(declared, list) else [declared])
    ]
    return [
        (module, recorder.index)
        for recorder in recorders
        for name, module in model.named_modules()
        if isinstance(module, recorder.target_class) and (recorder.layer_name or "") in name
    ]
