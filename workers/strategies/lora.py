"""LoRA: low-rank adapters move, the base model stays frozen (Hu et al. 2021, arXiv 2106.09685), through peft."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from workers.settings import Settings

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class LoraStrategyConfig(Settings):
    """Train low-rank adapters on linear layers and freeze everything else."""

    type: Literal["lora"] = "lora"
    """LoRA adapters."""
    rank: Annotated[int, Field(ge=1)] = 16
    """Rank of each adapter."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Scale of the adapters; the update is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' input, a fraction."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names of the layers that get an adapter, or all linear layers but the output head."""


def apply(model: "PreTrainedModel", config: LoraStrategyConfig) -> "PeftModel":
    """The model wrapped by peft, only its adapters trainable."""
    from peft import LoraConfig, get_peft_model

    adapters = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft only divides by it
        lora_dropout=config.dropout,
        target_modules=config.target_modules,
    )
    # Adapters keep the model's own precision: ZeRO has one for all, and the optimizer keeps fp32 masters anyway.
    return get_peft_model(model, adapters, autocast_adapter_dtype=False)
