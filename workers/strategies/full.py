"""Full fine-tuning: every parameter moves."""

from typing import TYPE_CHECKING, Literal

from workers.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FullConfig(Settings):
    """Train all parameters."""

    type: Literal["full"] = "full"
    """Full fine-tuning."""


def apply(model: "PreTrainedModel", config: FullConfig) -> "PreTrainedModel":
    """The model itself, all parameters trainable."""
    model.requires_grad_(True)
    return model
