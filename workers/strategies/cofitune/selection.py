"""Which parameters train: the chosen modules of the chosen layers; norms, embeddings, head and the rest are frozen."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workers.strategies.cofitune.architectures import (
    architecture_of,
    decoder_layers,
    row_axis,
    row_modules,
    sizes_of,
    submodule,
)
from workers.strategies.cofitune.config import CoFiTuneConfig, trained_layers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


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


def freeze(model: "PreTrainedModel", config: CoFiTuneConfig) -> None:
    """Make exactly the chosen parameters require gradients.

    Raises:
        ValueError: the model does not have these layers or modules, or its architecture is unknown.
    """
    model.requires_grad_(False)
    for trained in trained_parameters(model, config):
        trained.parameter.requires_grad_(True)


def trained_parameters(model: "PreTrainedModel", config: CoFiTuneConfig) -> Iterator[TrainedParameter]:
    """The chosen weights and biases, layer by layer."""
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
                axis = row_axis(module) if name == "weight" else 0
                yield TrainedParameter(parameter, layer, axis, module_R, unit_R, is_trained_R)
