"""What every mixing algorithm is: initial weights, an answer to feedback, a state in plain JSON types, inner values."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from pydantic import AfterValidator, Field

from workers.contracts import DomainFeedback
from workers.settings import Settings

Shares = dict[str, float]

_GIVEN_SUM_TOLERANCE = 1e-6  # people write 0.333333


def _sum_to_one(shares: Shares) -> Shares:
    total = math.fsum(shares.values())
    if abs(total - 1.0) > _GIVEN_SUM_TOLERANCE:
        remedy = f"divide each by {total:.9g} or mend one" if total > 0 else "give at least one of them a share"
        raise ValueError(f"shares sum to {total:.9g}, not to 1; {remedy}")
    return shares


GivenShares = Annotated[dict[str, Annotated[float, Field(ge=0)]], Field(min_length=1), AfterValidator(_sum_to_one)]
Initial = Literal["uniform", "proportional"] | GivenShares


class Domain(Protocol):
    """What an algorithm knows of a domain beforehand."""

    @property
    def name(self) -> str:
        """Name in the configuration."""

    @property
    def num_examples(self) -> int:
        """Training examples."""

    @property
    def num_tokens(self) -> int:
        """Training tokens."""


class MixingConfig(Settings):
    """Settings that every mixing algorithm has."""

    type: str
    """Name in the table of algorithms."""
    unit: Literal["examples", "tokens"] = "examples"
    """What a share is a share of. Both shares are logged whichever is chosen."""


Config = TypeVar("Config", bound=MixingConfig)


class MixingAlgorithm(ABC, Generic[Config]):
    """Answers feedback with shares. The controller hands in only complete, finite losses."""

    required_signals: ClassVar[tuple[str, ...]] = ()
    """Names of the further signals that workers must measure for it."""
    state_fields: ClassVar[tuple[str, ...]] = ()
    """Attributes that make up its state, each of plain JSON types."""

    def __init__(self, config: Config, domains: Sequence[Domain]) -> None:
        if not domains:
            raise ValueError("a mixture needs at least one domain")
        self.config = config
        self.domains = list(domains)
        self.names = [domain.name for domain in domains]

    @abstractmethod
    def initial_weights(self) -> Shares:
        """Shares before any feedback; they sum to 1."""

    @abstractmethod
    def observe(self, feedback: DomainFeedback) -> Shares | None:
        """New shares after an evaluation, or None for no change."""

    def metrics(self) -> dict[str, float]:
        """What it believed at the last feedback, by `quantity/domain`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next answer depends on, in plain JSON types."""
        return {field: getattr(self, field) for field in self.state_fields}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: the state has other fields, or other domains, than this algorithm.
        """
        if set(state) != set(self.state_fields):
            raise ValueError(f"{self.config.type}: state has {sorted(state)}, expected {sorted(self.state_fields)}")
        for field, value in state.items():
            if isinstance(value, dict):
                check_domains(f"{self.config.type}: state field {field!r}", value, self.names)
            setattr(self, field, value)


class ConstantMixing(MixingAlgorithm[Config]):
    """An algorithm whose shares never change."""

    def observe(self, feedback: DomainFeedback) -> None:
        """No change, whatever was measured."""


def check_domains(what: str, values: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse values that are not given for exactly these domains."""
    if missing := [name for name in names if name not in values]:
        raise ValueError(f"{what}: no value for {missing}; give one for each of {list(names)}")
    if unknown := [name for name in values if name not in names]:
        raise ValueError(f"{what}: {unknown} are not domains of this run; its domains are {list(names)}")


def normalise(values: Mapping[str, float]) -> Shares:
    """Values divided by their sum."""
    total = math.fsum(values.values())
    return {name: value / total for name, value in values.items()}


def initial_shares(initial: Initial, domains: Sequence[Domain], unit: str) -> Shares:
    """The shares that `initial` stands for: uniform, by size in `unit`, or given."""
    if initial == "uniform":
        return {domain.name: 1.0 / len(domains) for domain in domains}
    if initial == "proportional":
        return normalise({d.name: d.num_examples if unit == "examples" else d.num_tokens for d in domains})
    check_domains("mixing.initial", initial, [domain.name for domain in domains])
    return normalise(initial)


def raise_to_floor(shares: Shares, floor: float) -> Shares:
    """The shares with none below `floor`; those above it give in proportion. All floors together are at most 1."""
    low = {name for name, share in shares.items() if share < floor}
    while True:
        rest = math.fsum(share for name, share in shares.items() if name not in low)
        scale = (1.0 - floor * len(low)) / rest if rest > 0 else 0.0
        fallen = {name for name, share in shares.items() if name not in low and share * scale < floor}
        if not fallen:
            return {name: floor if name in low else share * scale for name, share in shares.items()}
        low |= fallen
