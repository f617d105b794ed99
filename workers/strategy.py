"""What every training strategy is."""

from typing import Any, Protocol

from workers.settings import Settings


class StrategySettings(Settings):
    """Settings that every strategy has."""

    type: str
    """Name in the table of strategies."""


class Strategy(Protocol):
    """A module, or an object, with these two.

    One that acts at every optimizer step as well has `attach(engine, config)`. It is called once, on every rank, when
    the engine is built, and hangs what it needs on the engine; it returns an `Attachment` or None.
    """

    @property
    def config_class(self) -> type[StrategySettings]:
        """Its settings; their `type` names it."""

    def apply(self, model: Any, config: Any) -> Any:
        """The model, or one around it, with only those parameters trainable that the strategy trains."""


class Attachment(Protocol):
    """What a strategy hung on an engine; both calls are made on all ranks."""

    def watch(self) -> None:
        """Look closely at the next optimizer step."""

    def observations(self) -> dict[str, Any]:
        """What was seen there, for the step's line of metrics.jsonl: plain JSON content, the same on all ranks."""
