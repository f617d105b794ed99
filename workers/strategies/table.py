"""The table of training strategies, and the union of their settings, which follows from it."""

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, Union

from pydantic import Field

from workers.plugins import has_type, with_plugins
from workers.strategies import cofitune, full, lora
from workers.strategies.base import Strategy, StrategySettings

_OWN: dict[str, Strategy] = {"full": full, "lora": lora, "cofitune": cofitune}


def _fault(name: str, entry: Any) -> str | None:
    """What keeps an object from being the strategy of this name."""
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
