"""The matrices of a model that an adapter fits.

Most are the weights of linear layers. The experts of a mixture are often one parameter with an axis for the experts,
and a router is a parameter of a module of its own: peft adapts these as `target_parameters`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_WRAPPING = re.compile(r"^base_model\.model\.|\.base_layer|\.original_module")
_OTHER_THAN_BASE = re.compile(r"\.lora_|\.modules_to_save\.|\.parametrizations\.")
# Classes of transformers: GptOssExperts, DbrxExpertGLU, JetMoeParallelExperts; MixtralTopKRouter.
_EXPERTS, _ROUTER = re.compile("Expert"), re.compile("Router")


@dataclass(frozen=True)
class Matrix:
    """One matrix, or the stack of one matrix an expert."""

    name: str
    """Of the parameter, in the base model."""
    num_parameters: int
    is_parameter: bool
    """peft has to be told of it as a parameter, not as a module."""
    is_linear: bool
    """It maps one hidden state to another: neither an embedding nor the output head."""
    is_transposed: bool = False
    """Kept as (inputs, outputs), as GPT-2 does."""
    refusal: str | None = None
    """Why peft makes no adapter for it."""

    @property
    def module(self) -> str:
        """Name of the module that holds it."""
        return self.name.rpartition(".")[0]


def find_matrices(model: Any) -> list[Matrix]:
    """The matrices of a model, wrapped by peft or not, on any device, ZeRO-3's partitions included."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder, head, embeddings = _part(base, "get_decoder"), base.get_output_embeddings(), base.get_input_embeddings()
    in_decoder = {id(module) for module in decoder.modules()} if decoder is not None else None
    reserved = _names_that_peft_converts(base)
    found = []
    for name, module, parameter in _parameters(model):
        kind = _kind(name, module, parameter)
        if kind is None:
            continue
        is_end = any(end is not None and _innermost(end) is module for end in (head, embeddings))
        owner, _, leaf = name.rpartition(".")
        is_reserved = kind != "embedding" and owner.rpartition(".")[2] in reserved
        found.append(
            Matrix(
                name=name,
                num_parameters=_size(parameter),
                is_parameter=kind == "parameter" or is_reserved,
                is_linear=not is_end and kind != "embedding" and (in_decoder is None or id(module) in in_decoder),
                is_transposed=type(module).__name__ == "Conv1D",
                refusal=_refusal(base, owner.rpartition(".")[2] if leaf == "weight" else leaf),
            )
        )
    return found


def adapted_names(model: Any) -> set[str]:
    """Names, in the base model, of the matrices that have an adapter in a model wrapped by peft."""
    from peft.tuners.lora import LoraLayer

    names = set()
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            names.add(f"{_plain(name)}.{getattr(module, 'parameter_name', 'weight')}")
    return names


def _parameters(model: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name in the base model, owner, and parameter, of all that is not an adapter's."""
    for path, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{leaf}"
            if not _OTHER_THAN_BASE.search(name):
                yield _plain(name), module, parameter


def _plain(name: str) -> str:
    return _WRAPPING.sub("", name)


def _kind(name: str, module: Any, parameter: Any) -> str | None:
    """`linear`, `embedding`, `parameter`, or None for what an adapter does not fit."""
    import torch
    from transformers.pytorch_utils import Conv1D

    owner, leaf = type(module).__name__, name.rpartition(".")[2]
    num_axes = len(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO-3 leaves an empty shape
    if isinstance(module, torch.nn.Linear | Conv1D | torch.nn.Embedding):
        if leaf != "weight":
            return None
        return "embedding" if isinstance(module, torch.nn.Embedding) else "linear"
    is_stack = _EXPERTS.search(owner) and num_axes in (2, 3) and not leaf.endswith("bias")
    is_router = _ROUTER.search(owner) and num_axes == 2 and leaf == "weight"
    return "parameter" if is_stack or is_router else None


def _names_that_peft_converts(base: Any) -> frozenset[str]:
    """Names of modules that peft takes for others when it reads an adapter of this model.

    It reads `gate_proj` in the adapter of a mixture as transformers 4 meant it, one of the experts' own matrices, and
    looks for it in the experts' stack. What else bears such a name (shared experts, dense layers) would be lost.
    """
    from peft.utils.transformers_weight_conversion import _MODEL_TO_CONVERSION_PATTERN, _MOE_TARGET_MODULE_MAPPING

    pattern = _MODEL_TO_CONVERSION_PATTERN.get(base.config.model_type)
    return frozenset(_MOE_TARGET_MODULE_MAPPING.get(str(pattern), {}))


def _refusal(base: Any, short_name: str) -> str | None:
    """What peft says of matrices whose layers some architectures never call, so that an adapter would do nothing."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    try:
        _check_lora_target_modules_mamba(LoraConfig(), base, short_name)
    except ValueError:
        return f"peft has no adapter for {short_name} of {base.config.model_type}, whose kernels read the weight itself"
    return None


def _part(base: Any, getter: str) -> Any:
    try:
        return getattr(base, getter)()
    except (AttributeError, NotImplementedError):
        return None


def _innermost(module: Any) -> Any:
    while hasattr(module, "base_layer") or hasattr(module, "original_module"):
        module = getattr(module, "base_layer", None) or module.original_module
    return module


def _size(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", None) or parameter.numel())
