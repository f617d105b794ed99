"""Full fine-tuning: every parameter is trained."""

from typing import TYPE_CHECKING, Literal

from workers.strategy import StrategySettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FullConfig(StrategySettings):
    """Train all parameters."""

    type: Literal["full"] = "full"
    """Full fine-tuning."""


config_class = FullConfig


def apply(model: "PreTrainedModel", config: FullConfig) -> "PreTrainedModel":
    model.requires_grad_(True)
    return model
