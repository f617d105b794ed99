"""What every mixing algorithm is: initial weights, an answer to feedback, a state in plain JSON types, inner values."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from pydantic import AfterValidator, Field

from workers.contracts import DomainFeedback
from workers.nearest import meant
from workers.settings import LocalPath, Settings

Shares = dict[str, float]

_GIVEN_SUM_TOLERANCE = 1e-6  # people write 0.333333


def _sum_to_one(shares: Shares) -> Shares:
    total = math.fsum(shares.values())
    if abs(total - 1.0) > _GIVEN_SUM_TOLERANCE:
        remedy = f"divide each by {total:.9g} or mend one" if total > 0 else "give at least one of them a share"
        raise ValueError(f"shares sum to {total:.9g}, not to 1; {remedy}")
    return shares


def _json_file(path: Path) -> Path:
    if path.suffix != ".json":  # a misspelt word would pass for a path
        raise ValueError(f"{str(path)!r} is neither a known word nor the name of a .json file")
    return path


GivenShares = Annotated[dict[str, Annotated[float, Field(ge=0)]], Field(min_length=1), AfterValidator(_sum_to_one)]
DistributionFile = Annotated[LocalPath, AfterValidator(_json_file)]
"""A JSON file {"shares": {domain: share}}, as the detection of a model's own distribution writes it."""
Initial = Literal["uniform", "proportional", "detected"] | DistributionFile | GivenShares


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

    @property
    def required_signals(self) -> tuple[str, ...]:
        """Names of the further signals (workers/signals) that the algorithm answers to."""
        return ()


Config = TypeVar("Config", bound=MixingConfig)


class MixingAlgorithm(ABC, Generic[Config]):
    """Answers feedback with shares. The controller hands in only complete, finite losses and required signals.

    Beside the losses a feedback says how far to trust them (`standard_error_nats`, `change_from_first`,
    `change_from_previous`), where that is known: a domain may be missing there, and no published method looks at them.
    """

    state_fields: ClassVar[tuple[str, ...]] = ()
    """Attributes that make up its state, each of plain JSON types."""

    def __init__(self, config: Config, domains: Sequence[Domain]) -> None:
        if not domains:
            raise ValueError("a mixture needs at least one domain")
        self.config = config
        self.domains = list(domains)
        self.names = [domain.name for domain in domains]

    @property
    def required_signals(self) -> tuple[str, ...]:
        """Names of the further signals that workers must measure for it, by its settings."""
        return self.config.required_signals

    @abstractmethod
    def initial_weights(self) -> Shares:
        """Shares before any feedback; they sum to 1."""

    @abstractmethod
    def observe(self, feedback: DomainFeedback) -> Shares | None:
        """New shares after an evaluation, or None for no change."""

    def adopt(self, shares: Shares) -> None:
        """Go on from shares that somebody else decided; nothing to do where the next answer does not depend on them."""

    def concerns(self, feedback: DomainFeedback) -> list[str]:
        """What a person should know of the evaluation before any training, in sentences: where the algorithm cannot do
        what it is there for."""
        return []

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
    if unknown := [name for name in values if name not in names]:
        near = meant(unknown, names)
        raise ValueError(f"{what}: {unknown} are not domains of this run{near}; its domains are {list(names)}")
    if missing := [name for name in names if name not in values]:
        raise ValueError(f"{what}: no value for {missing}; give one for each of {list(names)}")


def check_target(target: str, names: Sequence[str]) -> None:
    """Refuse a target that is not one of these domains."""
    if target not in names:
        near = meant([target], names)
        raise ValueError(f"mixing.target: {target!r} is not a domain that is trained on{near}; these are {list(names)}")


def normalise(values: Mapping[str, float]) -> Shares:
    """Values divided by their sum."""
    total = math.fsum(values.values())
    return {name: value / total for name, value in values.items()}


def initial_shares(initial: Initial, domains: Sequence[Domain], unit: str) -> Shares:
    """The shares that `initial` stands for: uniform, by size in `unit`, or given.

    Raises:
        ValueError: it names other domains, or a distribution that has to be found out or read first.
    """
    if initial == "uniform":
        return {domain.name: 1.0 / len(domains) for domain in domains}
    if initial == "proportional":
        return normalise({d.name: d.num_examples if unit == "examples" else d.num_tokens for d in domains})
    return given_shares("mixing.initial", initial, [domain.name for domain in domains])


def given_shares(key: str, given: Path | str | Mapping[str, float], names: Sequence[str]) -> Shares:
    """Shares that a configuration gives for exactly these domains, in their order.

    Raises:
        ValueError: they are for other domains, or are still the word or the file that stands for them.
    """
    if isinstance(given, Path | str):
        raise ValueError(f"{key}: {given} has to be turned into shares by domain first")
    check_domains(key, given, names)
    return normalise({name: given[name] for name in names})


def flatten_by_temperature(shares: Shares, tau: float) -> Shares:
    """q_tau(j) = q(j)^(1/tau) / sum_i q(i)^(1/tau): tau 1 keeps the shares, infinity makes them uniform."""
    return normalise({name: share ** (1.0 / tau) for name, share in shares.items()})


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
