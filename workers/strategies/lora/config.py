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
    """Scale of the adapters; the update is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' input, a fraction; peft has none for the matrices of experts and routers."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Names of the matrices that get an adapter (last parts of their names in the model, such as q_proj, lm_head or
    experts.down_proj), or every linear matrix of the decoder, those of experts and routers included, but the output
    head. `raymix check` prints what is reached."""
    modules_to_save: list[str] = Field(default_factory=list)
    """Modules to train in full beside the adapters, such as lm_head or embed_tokens."""
    use_rslora: bool = False
    """Multiply the update by alpha / sqrt(rank) instead (rank-stabilised LoRA, arXiv 2312.03732)."""
    use_dora: bool = False
    """Train magnitude and direction of each matrix apart (DoRA, arXiv 2402.09353); not for experts and routers."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Other ranks for some matrices: last part of a name, or a regular expression -> rank."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Other alphas for some matrices, in the same way."""

    @model_validator(mode="after")
    def _names_make_sense(self) -> Self:
        if self.target_modules == []:
            raise ValueError("target_modules is empty; name matrices, or leave it out for all-linear")
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
                    f"{both[0]!r} is in target_modules and in modules_to_save; an adapter on what is "
                    "trained in full does nothing more, so leave it out of one of them"
                )
        return self
