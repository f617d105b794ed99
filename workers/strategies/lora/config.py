"""The settings of LoRA."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from workers.strategy import StrategySettings


class LoraStrategyConfig(StrategySettings):
    """Train low-rank adapters on matrices of the model and freeze everything else."""

    type: Literal["lora"] = "lora"
    """LoRA adapters."""
    rank: Annotated[int, Field(ge=1)] = 16
    """Rank of each adapter."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Scale of the adapters: their update is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' input, as a fraction; peft does not support it for experts and routers."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names of the matrices that get an adapter (the last parts of their names in the model, such as q_proj, lm_head or
    experts.down_proj), or `all-linear`: every linear matrix of the decoder, including experts and routers, except the
    output head. `raymix check` prints which matrices these are."""
    modules_to_save: list[str] = Field(default_factory=list)
    """Modules to train in full in addition to the adapters, such as lm_head or embed_tokens."""
    use_rslora: bool = False
    """Multiply the update by alpha / sqrt(rank) instead (rank-stabilised LoRA, arXiv 2312.03732)."""
    use_dora: bool = False
    """Train magnitude and direction of each matrix separately (DoRA, arXiv 2402.09353); not for experts and routers."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Different ranks for some matrices: last part of a name, or a regular expression -> rank."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Different alphas for some matrices, in the same form."""

    @model_validator(mode="after")
    def _names_make_sense(self) -> Self:
        if self.target_modules == []:
            raise ValueError("target_modules is empty; name matrices, or leave the key out for all-linear")
        for key in ("rank_pattern", "alpha_pattern"):
            for pattern in getattr(self, key):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(f"{key}: {pattern!r} is not a regular expression: {error}") from None
        if self.target_modules != "all-linear":
            both = sorted(set(self.target_modules) & set(self.modules_to_save))
            if both:
                raise ValueError(
                    f"{both[0]!r} is in both target_modules and modules_to_save; an adapter on a module that is "
                    "trained in full has no effect, so remove it from one of them"
                )
        return self
