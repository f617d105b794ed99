"""Which parameters move: one file per training strategy.

To add one, write a file with a config class (its `type` names it) and an `apply(model, config)` function that
freezes or wraps the model, and put both in the two lines below. Neither the loop nor the engine changes.
Files here import torch and peft inside their functions, so that a configuration is checked without them.

A strategy that acts at every optimizer step as well has an `attach(engine, config)` function. It is called once, on
every rank, when the engine is built, and hangs what it needs on the engine; it returns an `Attachment` or None.
"""

from typing import Annotated, Any, Protocol

from pydantic import Field

from workers.strategies import cofitune, full, lora

STRATEGIES = {"full": full, "lora": lora, "cofitune": cofitune}

StrategyConfig = Annotated[
    full.FullConfig | lora.LoraStrategyConfig | cofitune.CoFiTuneConfig, Field(discriminator="type")
]


class Attachment(Protocol):
    """What a strategy hung on an engine; both calls are made on all ranks."""

    def watch(self) -> None:
        """Look closely at the next optimizer step."""

    def observations(self) -> dict[str, Any]:
        """What was seen there, for the step's line of metrics.jsonl: plain JSON content, the same on all ranks."""


__all__ = ["STRATEGIES", "Attachment", "StrategyConfig"]
