"""Names of the attention and feed-forward matrices in the architectures of transformers, and what their rows are; and
which of them train: the chosen modules of the chosen layers. Norms, embeddings, head and the rest are frozen.

To add an architecture, give it a line in `ARCHITECTURES`, by its `model_type`. Several modules may share one matrix
(`qkv_proj`): their rows are then concatenated, or interleaved head by head.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workers.strategies.cofitune.config import CoFiTuneConfig, trained_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Architecture:
    """Where the modules of a decoder layer are; paths are relative to the layer."""

    modules: Mapping[str, str]
    layers: str = "layers"  # of the decoder
    attention: str = "self_attn"
    dropout: str = "attention_dropout"  # of the attention module: a number, or a torch Dropout
    is_interleaved: bool = False  # a matrix of q, k and v holds them head by head
    shared: dict[str, list[str]] = field(init=False, default_factory=dict)  # matrix -> the modules in it, in order

    def __post_init__(self) -> None:
        for module, path in self.modules.items():
            self.shared.setdefault(path, []).append(module)


_GATED = Architecture(
    {
        **{module: f"self_attn.{module}_proj" for module in ("q", "k", "v", "o")},
        **{module: f"mlp.{module}_proj" for module in ("gate", "up", "down")},
    }
)
_QKV = {module: f"self_attn.{module}_proj" for module in ("q", "k", "v")}

ARCHITECTURES: dict[str, Architecture] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "granite", "olmo2", "smollm3"), _GATED),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), _GATED),
    "phi3": Architecture(
        {
            **dict.fromkeys(("q", "k", "v"), "self_attn.qkv_proj"),
            "o": "self_attn.o_proj",
            **dict.fromkeys(("gate", "up"), "mlp.gate_up_proj"),
            "down": "mlp.down_proj",
        }
    ),
    "phi": Architecture({**_QKV, "o": "self_attn.dense", "up": "mlp.fc1", "down": "mlp.fc2"}),
    "opt": Architecture({**_QKV, "o": "self_attn.out_proj", "up": "fc1", "down": "fc2"}, dropout="dropout"),
    "gpt2": Architecture(
        {**dict.fromkeys(("q", "k", "v"), "attn.c_attn"), "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"},
        layers="h",
        attention="attn",
        dropout="attn_dropout",
    ),
    "gpt_neox": Architecture(
        {
            **dict.fromkeys(("q", "k", "v"), "attention.query_key_value"),
            "o": "attention.dense",
            "up": "mlp.dense_h_to_4h",
            "down": "mlp.dense_4h_to_h",
        },
        attention="attention",
        is_interleaved=True,
    ),
}


@dataclass(frozen=True)
class Sizes:
    """Numbers of units in one layer."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate: int
    hidden: int


def architecture_of(model_type: str, modules: Sequence[str]) -> Architecture:
    """The names in the layers of this type of model; ValueError if it is unknown, or has no such module."""
    if model_type not in ARCHITECTURES:
        raise ValueError(
            f"training.strategy: cofitune does not know the module names of {model_type!r} models; it knows "
            f"{', '.join(ARCHITECTURES)}. Use one of these, another strategy, or add its names to "
            "workers/strategies/cofitune/architectures.py"
        )
    architecture = ARCHITECTURES[model_type]
    absent = [module for module in modules if module not in architecture.modules]
    if absent:
        raise ValueError(
            f"training.strategy.modules: {model_type} models have no {', '.join(absent)}; "
            f"they have {', '.join(architecture.modules)}"
        )
    return architecture


def submodule(module: Any, path: str) -> Any:
    return reduce(getattr, path.split("."), module)


def decoder_layers(model: "PreTrainedModel", architecture: Architecture) -> "list[torch.nn.Module]":
    return list(getattr(model.get_decoder(), architecture.layers))


def sizes_of(model: "PreTrainedModel", architecture: Architecture) -> Sizes:
    """Read from the first layer's matrices, because configurations name these numbers differently."""
    config = model.config.get_text_config()
    layer = decoder_layers(model, architecture)[0]
    output, down = (submodule(layer, architecture.modules[module]) for module in ("o", "down"))
    return Sizes(
        num_heads=config.num_attention_heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=_num_inputs(output) // config.num_attention_heads,
        intermediate=_num_inputs(down),
        hidden=down.nf if hasattr(down, "nf") else down.out_features,
    )


def row_modules(architecture: Architecture, path: str, sizes: Sizes) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """For each row (output unit) of a matrix, its module and its head (q, k, v) or neuron in that module."""
    modules = architecture.shared[path]
    names, units = [], []
    for module in modules:
        num_rows, rows_per_unit = _rows(module, sizes)
        names.append(np.full(num_rows, module))
        units.append(np.arange(num_rows) // rows_per_unit)
    if architecture.is_interleaved and len(modules) > 1:
        by_head = (sizes.num_heads, sizes.head_dim)
        return (
            np.stack([part.reshape(by_head) for part in names], axis=1).ravel(),
            np.stack([part.reshape(by_head) for part in units], axis=1).ravel(),
        )
    return np.concatenate(names), np.concatenate(units)


def _rows(module: str, sizes: Sizes) -> tuple[int, int]:
    """Rows of a module, and rows per unit."""
    match module:
        case "q":
            return sizes.num_heads * sizes.head_dim, sizes.head_dim
        case "k" | "v":
            return sizes.num_kv_heads * sizes.head_dim, sizes.head_dim
        case "gate" | "up":
            return sizes.intermediate, 1
        case _:
            return sizes.hidden, 1


def _num_inputs(module: Any) -> int:
    return module.nx if hasattr(module, "nx") else module.in_features


@dataclass(frozen=True)
class TrainedParameter:
    """A parameter that trains, at least in part; R rows (output units)."""

    parameter: "torch.nn.Parameter"
    layer: int  # index, from 0
    axis: int  # of the rows in the parameter
    module_R: NDArray[np.str_]  # the module that each row belongs to
    unit_R: NDArray[np.int64]  # its head (q, k, v) or neuron
    is_trained_R: NDArray[np.bool_]  # False for rows of a frozen module in a shared matrix

    @property
    def shape(self) -> "torch.Size":
        return getattr(self.parameter, "ds_shape", self.parameter.shape)


def trained_parameters(model: "PreTrainedModel", config: CoFiTuneConfig) -> Iterator[TrainedParameter]:
    """The chosen weights and biases, layer by layer; ValueError if the model or its architecture lacks them."""
    architecture = architecture_of(model.config.get_text_config().model_type, config.trained_modules)
    layers = decoder_layers(model, architecture)
    sizes = sizes_of(model, architecture)
    paths = list(dict.fromkeys(architecture.modules[module] for module in config.trained_modules))
    for layer in trained_layers(config.layers, len(layers)):
        for path in paths:
            module = submodule(layers[layer], path)
            module_R, unit_R = row_modules(architecture, path, sizes)
            is_trained_R = np.isin(module_R, config.trained_modules)
            for name, parameter in module.named_parameters(recurse=False):
                axis = 1 if name == "weight" and hasattr(module, "nf") else 0  # 1 in the Conv1D of GPT-2
                yield TrainedParameter(parameter, layer, axis, module_R, unit_R, is_trained_R)
