"""The matrices of a model that can have an adapter, and the reach of LoRA: those that have one, grouped by name.

Most are weights of linear layers. The experts of a mixture are often one parameter with an axis for the experts, and a
router is a parameter of a special module: peft adapts these as `target_parameters`.
"""

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

_WRAPPING = re.compile(r"^base_model\.model\.|\.base_layer|\.original_module")
_UNWRAPPED = re.compile(r"(\.base_layer|\.original_module)+$")
_OTHER_THAN_BASE = re.compile(r"\.lora_|\.modules_to_save\.|\.parametrizations\.")
# Classes of transformers: GptOssExperts, DbrxExpertGLU, JetMoeParallelExperts; MixtralTopKRouter.
_EXPERTS, _ROUTER = re.compile("Expert"), re.compile("Router")
_GROUPED = re.compile("Grouped")  # DeepseekV4GroupedLinear
_NUMBERS = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Matrix:
    """One matrix, or a stack with one matrix per expert."""

    name: str  # of the parameter, in the base model
    num_parameters: int
    is_parameter: bool  # peft addresses it as a parameter, not as a module
    is_linear: bool  # it maps between hidden states: neither an embedding nor the output head
    is_transposed: bool = False  # stored as (inputs, outputs), as in GPT-2
    refusal: str | None = None  # why it cannot have an adapter

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]


def find_matrices(model: Any) -> list[Matrix]:
    """The matrices of a model, wrapped by peft or not, on any device, including ZeRO-3 partitions."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head, embeddings = base.get_output_embeddings(), base.get_input_embeddings()
    in_decoder = _modules_of_decoder(base, embeddings)
    reserved, renamed = _names_that_peft_converts(base), _renames(base)
    parameters = list(_parameters(model))
    num_owners = Counter(id(parameter) for _, _, _, parameter in parameters)
    found = []
    for name, module, parent, parameter in parameters:
        kind = _kind(name, module, parameter)
        if kind is None:
            continue
        is_end = any(end is not None and _innermost(end) is module for end in (head, embeddings))
        path, _, leaf = name.rpartition(".")
        short_name = path.rpartition(".")[2]
        is_reserved = kind != "embedding" and short_name in reserved
        is_linear = not is_end and kind != "embedding" and id(module) in in_decoder
        refusal = None
        if is_linear and num_owners[id(parameter)] > 1:
            refusal = f"{short_name} is one matrix shared by several layers, which would get the sum of their adapters"
        elif is_linear and renamed(name):
            refusal = f"transformers renames {short_name} when it loads an adapter"
        elif is_linear and leaf == "weight":
            refusal = _refusal(base, parent, short_name)
        found.append(
            Matrix(
                name=name,
                num_parameters=int(getattr(parameter, "ds_numel", None) or parameter.numel()),
                is_parameter=kind == "parameter" or is_reserved,
                is_linear=is_linear,
                is_transposed=type(module).__name__ == "Conv1D",
                refusal=refusal,
            )
        )
    return found


def adapted_names(model: Any) -> set[str]:
    """Names, in the base model, of the matrices that have an adapter in a model wrapped by peft."""
    from peft.tuners.lora import LoraLayer

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    return {f"{plain_name(name)}.{getattr(module, 'parameter_name', 'weight')}" for name, module in layers}


def _parameters(model: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """Name in the base model, owner, the owner's owner, and parameter, of all except adapters."""
    modules = dict(model.named_modules())
    for path, module in modules.items():
        parent = modules[_UNWRAPPED.sub("", path).rpartition(".")[0]] if path else module
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{leaf}"
            if not _OTHER_THAN_BASE.search(name):
                yield plain_name(name), module, parent, parameter


def plain_name(name: str) -> str:
    """A name in the base model, from one in a model wrapped by peft."""
    return _WRAPPING.sub("", name)


def _kind(name: str, module: Any, parameter: Any) -> str | None:
    """`linear`, `embedding`, `parameter`, or None for what cannot have an adapter."""
    import torch
    from transformers.pytorch_utils import Conv1D

    owner, leaf = type(module).__name__, name.rpartition(".")[2]
    num_axes = len(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO-3 leaves an empty shape
    if _ROUTER.search(owner):  # some are subclasses of linear layers, but return several tensors
        return "parameter" if num_axes == 2 and leaf == "weight" else None
    if isinstance(module, torch.nn.Linear | Conv1D | torch.nn.Embedding):
        if leaf != "weight":
            return None
        return "embedding" if isinstance(module, torch.nn.Embedding) else "linear"
    is_stack = _EXPERTS.search(owner) and num_axes in (2, 3) and not leaf.endswith("bias")
    return "parameter" if is_stack else None


def _names_that_peft_converts(base: Any) -> frozenset[str]:
    """Names of modules that peft mistakes for others when it reads an adapter of this model.

    In the adapter of a mixture it reads `gate_proj` as in transformers 4, as a matrix of one expert, and looks for it
    in the experts' stack. Other modules with such a name (shared experts, dense layers) would be lost.
    """
    from peft.utils.transformers_weight_conversion import _MODEL_TO_CONVERSION_PATTERN, _MOE_TARGET_MODULE_MAPPING

    pattern = _MODEL_TO_CONVERSION_PATTERN.get(base.config.model_type)
    return frozenset(_MOE_TARGET_MODULE_MAPPING.get(str(pattern), {}))


def _renames(base: Any) -> Callable[[str], bool]:
    """A predicate: whether transformers mistakes a name for one from an older file and changes it on loading."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    renamings = [one for one in get_model_conversion_mapping(base) or [] if isinstance(one, WeightRenaming)]
    return lambda name: rename_source_key(name, renamings, [])[0] != name


def _refusal(base: Any, parent: Any, short_name: str) -> str | None:
    """Why an adapter on a layer would have no effect: its owner reads the weight without calling it, as in Mamba."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba

    layer = type(getattr(parent, short_name, None)).__name__
    if _GROUPED.search(layer):
        return f"{layer} works in groups, and an adapter does not"
    owner: Any = type(parent)
    if _reads_weight(owner, short_name):
        return f"{owner.__name__} reads the weight of {short_name} directly, bypassing any adapter"
    try:
        _check_lora_target_modules_mamba(LoraConfig(), base, short_name)
    except ValueError:
        return f"peft refuses {short_name} of {base.config.model_type}"
    return None


@cache
def _reads_weight(owner: type, child: str) -> bool:
    """Whether the source of a layer passes on `self.child.weight` whole, in at least one code path."""
    try:
        source = inspect.getsource(owner)
    except (OSError, TypeError):
        return False
    return re.search(rf"self\.{re.escape(child)}\.weight\b(?!\.|\[|\s*=[^=])", source) is not None


def _modules_of_decoder(base: Any, embeddings: Any) -> set[int]:
    """Ids of the text decoder's modules, or of all modules if the model has no other part."""
    try:
        modules = {id(module) for module in base.get_decoder().modules()}
    except (AttributeError, NotImplementedError):
        modules = set()
    # In some families `get_decoder` returns the output head.
    return modules if id(_innermost(embeddings)) in modules else {id(module) for module in base.modules()}


def _innermost(module: Any) -> Any:
    while hasattr(module, "base_layer") or hasattr(module, "original_module"):
        module = getattr(module, "base_layer", None) or module.original_module
    return module


@dataclass(frozen=True)
class Reach:
    """The reach in a model wrapped by peft; its weights may be on the meta device."""

    adapted: list[Matrix]
    left_out: list[Matrix]  # linear matrices of the decoder without one
    saved: list[str]  # modules trained in full

    @property
    def share_of_matrices(self) -> float:
        """Share of adapted matrices in all linear matrices of the decoder and others that are adapted."""
        return len(self.adapted) / (len(self.adapted) + len(self.left_out))

    @property
    def share_of_parameters(self) -> float:
        adapted, left_out = (sum(m.num_parameters for m in part) for part in (self.adapted, self.left_out))
        return adapted / (adapted + left_out)

    def lines(self) -> list[str]:
        """A line on the matrices with an adapter, then on those trained in full and those left out, if any."""
        total = len(self.adapted) + len(self.left_out)
        lines = [
            f"LoRA on {len(self.adapted):,} of {total:,} matrices ({self.share_of_matrices:.0%}, "
            f"{self.share_of_parameters:.0%} of their parameters): {_grouped(self.adapted)}"
        ]
        if self.saved:
            lines.append(f"trained in full: {', '.join(self.saved)}")
        if self.left_out:
            reasons = sorted({matrix.refusal for matrix in self.left_out if matrix.refusal})
            lines.append("; ".join([f"no adapter on {_grouped(self.left_out)}", *reasons]))
        return lines


def find_reach(model: Any) -> Reach:
    """The reach of the adapters in a model returned by `apply`."""
    matrices, names = find_matrices(model), adapted_names(model)
    trained = (name for name, p in model.named_parameters() if ".modules_to_save." in name and p.requires_grad)
    saved = {name.removeprefix("base_model.model.").partition(".modules_to_save.")[0] for name in trained}
    adapted = [matrix for matrix in matrices if matrix.name in names]
    in_saved = tuple(f"{module}." for module in saved)
    left_out = [m for m in matrices if m.is_linear and m.name not in names and not m.name.startswith(in_saved)]
    return Reach(adapted, left_out, sorted(saved))


def _grouped(matrices: list[Matrix]) -> str:
    """Names with stars for numbers, grouped by module: layers.*.self_attn.[k_proj, q_proj] (48)."""
    groups: dict[str, Counter[str]] = {}
    for matrix in matrices:
        name = _NUMBERS.sub(".*.", matrix.name.removesuffix(".weight"))
        owner, _, leaf = name.rpartition(".")
        groups.setdefault(owner, Counter())[leaf] += 1
    parts = []
    for owner, leaves in groups.items():
        names = next(iter(leaves)) if len(leaves) == 1 else f"[{', '.join(leaves)}]"
        parts.append(f"{owner + '.' if owner else ''}{names} ({leaves.total()})")
    return ", ".join(parts)
