"""CoFiTune (arXiv 2404.10306): train some modules of some layers and protect their important units."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workers.strategies.cofitune.architectures import architecture_of, trained_parameters
from workers.strategies.cofitune.config import CoFiTuneConfig, ImportanceConfig, trained_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from workers.strategies.cofitune.soft_mask import SoftMask, SteppingEngine

__all__ = ["CoFiTuneConfig", "ImportanceConfig", "apply", "attach", "check_model", "config_class", "trained_layers"]

config_class = CoFiTuneConfig


def apply(model: "PreTrainedModel", config: CoFiTuneConfig) -> "PreTrainedModel":
    """Make only the chosen modules of the chosen layers trainable; ValueError if the model does not have them."""
    model.requires_grad_(False)
    for trained in trained_parameters(model, config):
        trained.parameter.requires_grad_(True)
    return model


def check_model(config: CoFiTuneConfig, model: Mapping[str, Any]) -> None:
    """Compare the settings with the content of a model's config.json, before the model is loaded; ValueError if the
    type of model is unknown, or it does not have these layers or modules."""
    text = model.get("text_config", model)
    architecture_of(str(text.get("model_type")), config.trained_modules)
    num_layers = text.get("num_hidden_layers", text.get("n_layer"))
    if isinstance(num_layers, int):
        trained_layers(config.layers, num_layers)


def attach(engine: "SteppingEngine", config: CoFiTuneConfig) -> "SoftMask | None":
    from workers.strategies.cofitune.soft_mask import attach as attach_mask

    return attach_mask(engine, config)
