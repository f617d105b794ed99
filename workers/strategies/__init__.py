"""Which parameters move: one file per training strategy.

To add one, write a file with a config class (its `type` names it) and an `apply(model, config)` function that
freezes or wraps the model, and put both in the two lines below. Neither the loop nor the engine changes.
Files here import torch and peft inside their functions, so that a configuration is checked without them.
"""

from typing import Annotated

from pydantic import Field

from workers.strategies import full, lora

STRATEGIES = {"full": full, "lora": lora}

StrategyConfig = Annotated[full.FullConfig | lora.LoraStrategyConfig, Field(discriminator="type")]

__all__ = ["STRATEGIES", "StrategyConfig"]
