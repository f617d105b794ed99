"""Attention kernels: which of transformers' implementations a model can use on a machine, and why not the others.

`kernel_choice.py` proves on the model itself that one of them is right.
"""

from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING

from workers.config.model import Attention, ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    Family = type[PreTrainedModel]

_FASTEST_FIRST: tuple[Attention, ...] = ("flash_attention_3", "flash_attention_2", "flex_attention", "sdpa", "eager")
_PACKAGES = {"flash_attention_3": "flash-attn-3", "flash_attention_2": "flash-attn"}
_WITHOUT_DROPOUT = ("flash_attention_3", "flex_attention")
"""The first would silently leave it out, the second fails in training."""


def attention_kernels(config: ModelConfig, family: "Family", described: "PreTrainedConfig", on_gpu: bool) -> list[str]:
    """The kernels to try, fastest first: the requested one, or for `auto` all that this family, precision and machine
    have, of which the last is the `plain_kernel`. ValueError if the requested one does not work here."""
    if config.attention == "auto":
        others = _FASTEST_FIRST[: _FASTEST_FIRST.index("sdpa")]
        possible = (kernel for kernel in others if _obstacle(kernel, config, family, described, on_gpu) is None)
        return [*possible, plain_kernel(config, family)]
    if obstacle := _obstacle(config.attention, config, family, described, on_gpu):
        works = ["sdpa", "eager"] if family._supports_sdpa else ["eager"]
        raise ValueError(
            f"model.attention: {config.attention} does not work here: {obstacle}; "
            f"use {' or '.join(works)}, or auto, which takes the fastest that is right for this model and machine"
        )
    return [config.attention]


def plain_kernel(config: ModelConfig, family: "Family") -> Attention:
    """The kernel with which a model is loaded, which works on any device: eager if it is requested or the family has no
    other, otherwise sdpa."""
    return "sdpa" if family._supports_sdpa and config.attention != "eager" else "eager"


def _obstacle(
    kernel: Attention, config: ModelConfig, family: "Family", described: "PreTrainedConfig", on_gpu: bool
) -> str | None:
    others = getattr(family, "_compatible_flash_implementations", None)
    is_flash, is_asked_for = kernel in _PACKAGES, config.attention == kernel
    exists = {
        "eager": True,
        "sdpa": family._supports_sdpa,
        "flex_attention": family._supports_flex_attn,
    }.get(kernel, family._supports_flash_attn and (others is None or kernel in others))
    if not exists:
        return f"{family.__name__} has no such kernel in transformers"
    if kernel in ("sdpa", "eager"):
        return None
    if not family._can_set_attn_implementation():
        return f"transformers does not let {family.__name__} change its kernel"
    if not on_gpu:
        return "it needs a GPU (cluster.gpus_per_worker)"
    if is_flash and config.dtype == "float32":
        return "it computes in bfloat16 only, and model.dtype is float32"
    # Its stand-in from the hub is code and weights of others: never without being asked for.
    if is_flash and not (_is_installed(_PACKAGES[kernel]) or (is_asked_for and _is_installed("kernels"))):
        return f"the package {_PACKAGES[kernel]} is not installed"
    if kernel in _WITHOUT_DROPOUT and (dropout := _attention_dropout(described)):
        return f"it has no dropout, and the model's config sets {dropout}"
    return None


def _is_installed(package: str) -> bool:
    # Not by its module: flash-attn and flash-attn-4 share one.
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


def _attention_dropout(described: "PreTrainedConfig") -> str | None:
    """The setting by which attention probabilities are dropped, if there is one that is not 0."""
    for name, value in vars(described.get_text_config()).items():
        if name.startswith("att") and "drop" in name and isinstance(value, float) and value > 0:
            return f"{name}: {value:g}"
    return None
