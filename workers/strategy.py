"""The interface of a training strategy."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from workers.settings import Settings

if TYPE_CHECKING:
    import torch


class StrategySettings(Settings):
    """The base of every strategy's settings."""

    type: str
    """Name of the strategy."""


class Strategy(Protocol):
    """A module or object with these two members.

    A strategy that also acts at every optimizer step has `attach(engine, config)`. It is called once on every rank,
    when the engine is built, registers its hooks on the engine, and returns an `Attachment` or None.
    """

    @property
    def config_class(self) -> type[StrategySettings]:
        """Its settings class, whose `type` names the strategy."""

    def apply(self, model: Any, config: Any) -> Any:
        """The model, possibly wrapped, in which exactly the parameters that the strategy trains are trainable."""


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + length) of a flattened parameter, at `offset` of a flat tensor."""

    parameter: "torch.nn.Parameter"
    offset: int
    start: int
    length: int


class Attachment(Protocol):
    """What a strategy attached to an engine; both calls are made on all ranks."""

    def watch(self) -> None:
        """Observe the next optimizer step."""

    def observations(self) -> dict[str, Any]:
        """What was observed, for the step's line of metrics.jsonl: JSON content, the same on all ranks."""
