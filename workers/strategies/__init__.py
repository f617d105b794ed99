"""Which parameters are trained: one file per training strategy.

To add one, write a file with a config class (its `type` names it; `config_class` is that class) and an
`apply(model, config)` function that freezes or wraps the model, and give it a line in the table below. Neither the loop
nor the engine changes. A strategy in a separate package is an entry point: docs/extending.md.

Files here import torch and peft inside functions, so that a configuration can be checked without them.
"""

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, Union

from pydantic import Field

from workers.plugins import has_type, with_plugins
from workers.strategies import cofitune, full, lora
from workers.strategy import Strategy, StrategySettings

_OWN: dict[str, Strategy] = {"full": full, "lora": lora, "cofitune": cofitune}


def _fault(name: str, entry: Any) -> str | None:
    """Why an object cannot be the strategy of this name."""
    if not callable(getattr(entry, "apply", None)):
        return "is not a strategy: it has no function `apply`"
    config = getattr(entry, "config_class", None)
    if not has_type(config, StrategySettings, name):
        return f"has no `config_class` of StrategySettings whose type is Literal[{name!r}]"
    return None


STRATEGIES = with_plugins("raymix.strategies", _OWN, _fault)

if TYPE_CHECKING:
    StrategyConfig: TypeAlias = StrategySettings
else:
    StrategyConfig = Annotated[
        Union[tuple(strategy.config_class for strategy in STRATEGIES.values())],  # noqa: UP007
        Field(discriminator="type"),
    ]

__all__ = ["STRATEGIES", "StrategyConfig"]
