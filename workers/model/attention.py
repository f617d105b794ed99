"""The attention kernel of a model: the requested one if it is available, or the best that works."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from workers.config.model import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FLASH = "flash_attention_2"


def resolve_attention(config: ModelConfig, family: type["PreTrainedModel"], on_gpu: bool) -> str:
    """The kernel by transformers' name; `auto` is sdpa if the family has it, otherwise eager.

    Raises:
        ValueError: the requested kernel does not work for this family, or on this machine.
    """
    works = ["sdpa", "eager"] if family._supports_sdpa else ["eager"]
    if config.attention == "auto":
        return works[0]
    if config.attention == _FLASH:
        obstacle = _obstacle_to_flash(config, family, on_gpu)
    else:
        obstacle = None if config.attention in works else f"{family.__name__} has no such kernel in transformers"
    if obstacle:
        raise ValueError(
            f"model.attention: {config.attention} does not work here: {obstacle}; "
            f"use {' or '.join(works)}, or auto, which is {works[0]} for this model"
        )
    return config.attention


def _obstacle_to_flash(config: ModelConfig, family: type["PreTrainedModel"], on_gpu: bool) -> str | None:
    others = getattr(family, "_compatible_flash_implementations", None)
    if not family._supports_flash_attn or (others is not None and _FLASH not in others):
        return f"{family.__name__} has no such kernel in transformers"
    if not on_gpu:
        return "it needs a GPU (cluster.gpus_per_worker)"
    if config.dtype == "float32":
        return "it computes in bfloat16 only, and model.dtype is float32"
    if not (find_spec("flash_attn") or find_spec("kernels")):
        return "the package flash-attn is not installed"
    return None
