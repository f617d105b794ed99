"""Fused kernels of liger-kernel for the norms and feed-forward layers of a model that is in memory.

Only the given model is changed. liger-kernel also replaces classes and functions in transformers' modules, which every
model of the family in this process would get, the plain one that verifies an export on the CPU included: those
replacements are undone. For the same reason its rotary embedding, which exists only as such a function, is left out.
So is its loss, because raymix needs the loss of every token.
"""

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def why_not() -> str | None:
    """Why there are no such kernels in this environment, or None."""
    if find_spec("liger_kernel") is None:
        return "the package liger-kernel is not installed; pip install 'raymix[liger]', or set it to false"
    return None


def check_liger(model_type: str, on_gpu: bool) -> None:
    """ValueError if liger-kernel cannot be used for a model of this type, here."""
    reason = why_not()
    if reason is None and not on_gpu:
        reason = "its kernels need a GPU (cluster.gpus_per_worker); set it to false"
    elif reason is None and model_type not in _appliers():
        reason = f"liger-kernel has no kernels for the model_type {model_type!r}; set it to false"
    if reason:
        raise ValueError(f"model.liger: {reason}")


def apply_liger(model: "PreTrainedModel") -> None:
    """Make the model's norms and feed-forward layers compute with the kernels."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    module: Any = sys.modules[type(model).__module__]
    before = dict(vars(module))
    without = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}
    _apply_liger_kernel_to_instance(model=model, **without)
    for name, value in before.items():
        setattr(module, name, value)


def _appliers() -> dict[str, Any]:
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    return dict(MODEL_TYPE_TO_APPLY_LIGER_FN)
