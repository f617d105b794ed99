"""The interface of mixing algorithms: initial weights, response to feedback, state in plain JSON types, metrics."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar, cast

from orchestrator.mixing.needs import (
    DISTRIBUTION,
    ByDomain,
    DomainName,
    Initial,
    Measured,
    Needs,
    NumbersFile,
    Source,
    check_keys,
    check_target,
    find_marks,
)
from workers.contracts import DomainFeedback
from workers.plugins import type_parameter
from workers.settings import Settings

Shares = dict[str, float]


@dataclass(frozen=True)
class Domain:
    """What an algorithm knows of a domain in advance: its name in the configuration, and its training data."""

    name: str
    num_examples: int | None
    num_tokens: int | None
    """None for a streamed domain, whose size nobody knows."""


class MixingConfig(Settings):
    """Settings of every mixing algorithm, and all that the rest of the system asks of them."""

    type: str
    """Name in the table of algorithms."""
    unit: Literal["examples", "tokens"] = "examples"
    """What shares are measured in. Both kinds of shares are logged in either case."""

    @property
    def required_signals(self) -> tuple[str, ...]:
        """Names of the signals besides losses (workers/signals) that the algorithm uses."""
        return ()

    @property
    def needs(self) -> Needs:
        """What must be known before the algorithm can be built."""
        needs = Needs(target=next((target for _, target in self._targets()), None))
        for _, kind, value in self._numbers():
            source = kind.source(value)
            if kind == DISTRIBUTION:
                needs = replace(needs, distribution=source or needs.distribution)
            else:
                needs = replace(needs, references=value if isinstance(value, dict) else source)
        return needs

    @property
    def by_size(self) -> str | None:
        """The key, with its value, that takes shares from the sizes of the domains; None if none does."""
        return next((f"{key}: {value}" for key, _, value in self._numbers() if value == "proportional"), None)

    @property
    def words(self) -> set[str]:
        """The words in the settings that stand for numbers measured before training, whether they are needed or not."""
        return {kind.word for _, kind, value in self._numbers() if value == kind.word}

    def check_domains(self, names: Sequence[str]) -> None:
        """ValueError if the settings are not for exactly these domains, naming the key and what to change."""
        for key, _, value in self._numbers():
            if isinstance(value, dict):
                check_keys(f"mixing.{key}", value, names)
        for key, target in self._targets():
            check_target(key, target, names)

    def restricted_to(self, names: Sequence[str]) -> Self:
        """The same settings with values for these domains only; shares keep their proportions."""
        changed: dict[str, Any] = {}
        for key, kind, value in self._numbers():
            if isinstance(value, dict):
                kept = {name: value[name] for name in names if name in value}
                changed[key] = normalise(kept) if kind == DISTRIBUTION and any(kept.values()) else kept
        return self.replaced(**changed)

    def files(self) -> list[NumbersFile]:
        return [NumbersFile(key, value, kind) for key, kind, value in self._numbers() if isinstance(value, Path)]

    def with_files_in(self, folder: Path) -> Self:
        """The same settings with relative paths resolved against a folder."""
        return self.replaced(**{file.key: folder / file.path for file in self.files()})

    def with_measured(self, measured: Measured) -> Self:
        """The same settings with words and files replaced by the numbers that they stand for, if those are known."""
        known = {key: measured.find(kind, kind.source(value)) for key, kind, value in self._numbers()}
        return self.replaced(**{key: dict(numbers) for key, numbers in known.items() if numbers is not None})

    def _numbers(self) -> Iterator[tuple[str, ByDomain, Any]]:
        """The fields with numbers by domain, or with a word or file for them: key, kind and value."""
        for key, field in type(self).model_fields.items():
            for mark in find_marks(field):
                if isinstance(mark, ByDomain):
                    yield key, mark, getattr(self, key)

    def _targets(self) -> Iterator[tuple[str, str]]:
        for key, field in type(self).model_fields.items():
            if any(isinstance(mark, DomainName) for mark in find_marks(field)) and getattr(self, key) is not None:
                yield key, getattr(self, key)


Config = TypeVar("Config", bound=MixingConfig)


class MixingAlgorithm(ABC, Generic[Config]):
    """Turns feedback into shares. The controller passes only complete, finite losses and required signals.

    `build_mixing_algorithm` builds it after checking names and needs, so all values by domain in the settings are
    numbers, for exactly these domains.

    Besides losses, feedback has their errors (`standard_error_nats`, `change_from_first`, `change_from_previous`) for
    those domains where they are known. No published method uses them.
    """

    state_fields: ClassVar[tuple[str, ...]] = ()
    """Attributes that make up the state, each of plain JSON types."""
    config_class: ClassVar[type[MixingConfig]]
    """The class of the settings, taken from the type parameter."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if config_class := type_parameter(cls, MixingConfig):
            cls.config_class = config_class

    def __init__(self, config: Config, domains: Sequence[Domain]) -> None:
        if not domains:
            raise ValueError("a mixture needs at least one domain")
        self.config = config
        self.domains = list(domains)
        self.names = [domain.name for domain in domains]

    @property
    def required_signals(self) -> tuple[str, ...]:
        return self.config.required_signals

    @abstractmethod
    def initial_weights(self) -> Shares:
        """Shares before any feedback; they sum to 1 and do not depend on reference losses."""

    @abstractmethod
    def observe(self, feedback: DomainFeedback) -> Shares | None:
        """New shares after an evaluation, or None for no change."""

    def adopt(self, shares: Shares) -> None:
        """Continue from shares that the user set; does nothing if the next answer does not depend on the shares."""

    def concerns(self, feedback: DomainFeedback) -> list[str]:
        """Warnings about the evaluation before training, in sentences: why the algorithm cannot do its work."""
        return []

    def metrics(self) -> dict[str, float]:
        """Internal values after the last feedback, by `quantity/domain`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next answer depends on, in plain JSON types."""
        return {field: getattr(self, field) for field in self.state_fields}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; ValueError if its fields or domains are not those of this algorithm."""
        if set(state) != set(self.state_fields):
            raise ValueError(f"{self.config.type}: state has {sorted(state)}, expected {sorted(self.state_fields)}")
        for field, value in state.items():
            if isinstance(value, dict):
                check_keys(f"{self.config.type}: state field {field!r}", value, self.names)
            setattr(self, field, value)


class ConstantMixing(MixingAlgorithm[Config]):
    """An algorithm whose shares never change."""

    def observe(self, feedback: DomainFeedback) -> None:
        return None


def normalise(values: Mapping[str, float]) -> Shares:
    total = math.fsum(values.values())
    return {name: value / total for name, value in values.items()}


def initial_shares(initial: Initial, domains: Sequence[Domain], unit: str) -> Shares:
    if initial == "uniform":
        return {domain.name: 1.0 / len(domains) for domain in domains}
    if initial == "proportional":
        return normalise({domain.name: _size(domain, unit) for domain in domains})
    return given_shares(initial, domains)


def _size(domain: Domain, unit: str) -> int:
    size = domain.num_examples if unit == "examples" else domain.num_tokens
    if size is None:
        raise ValueError(f"domain {domain.name!r} is streamed, so its size is not known; give its share")
    return size


def given_shares(given: Source | Mapping[str, float], domains: Sequence[Domain]) -> Shares:
    shares = cast(Mapping[str, float], given)  # numbers by the time an algorithm is built
    return normalise({domain.name: shares[domain.name] for domain in domains})


def flatten_by_temperature(shares: Shares, tau: float) -> Shares:
    """q_tau(j) = q(j)^(1/tau) / sum_i q(i)^(1/tau): tau 1 keeps the shares, infinity makes them uniform."""
    return normalise({name: share ** (1.0 / tau) for name, share in shares.items()})


def raise_to_floor(shares: Shares, floor: float) -> Shares:
    """The shares with none below `floor`; those above it give up in proportion. All floors together are at most 1."""
    low = {name for name, share in shares.items() if share < floor}
    while True:
        rest = math.fsum(share for name, share in shares.items() if name not in low)
        scale = (1.0 - floor * len(low)) / rest if rest > 0 else 0.0
        fallen = {name for name, share in shares.items() if name not in low and share * scale < floor}
        if not fallen:
            return {name: floor if name in low else share * scale for name, share in shares.items()}
        low |= fallen


@dataclass(frozen=True)
class ResolvedMixing:
    """Settings with numbers for all that the algorithm needs, for exactly the domains of a run.

    The run folder keeps the settings as written (config.json); the controller receives these.
    """

    config: MixingConfig


def resolve_mixing(config: MixingConfig, measured: Measured, names: Sequence[str]) -> ResolvedMixing:
    """The settings, for the domains `names`, with words and files replaced by the numbers that were measured or read.

    ValueError if the settings or the numbers are for other domains, or if something needed is not known.
    """
    known = config.with_measured(measured)
    known.check_domains(names)
    for what, left in (("shares", known.needs.distribution), ("losses", known.needs.references)):
        if isinstance(left, str | Path):
            raise ValueError(f"mixing: the {what} by domain that {left} stands for are not known yet")
    return ResolvedMixing(known)
