"""What a mixing algorithm must know about the domains before it can be built, and how its settings declare it.

The annotation of a field tells its meaning: `Initial` and `BaseDistribution` are a share for each domain,
`ReferenceLosses` a loss for each, `TargetDomain` the name of one. Checking names, restricting settings to some domains,
reading files and filling in measured numbers go by these marks, never by the names of fields.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from workers.bounded import UnreadableFileError, read_json
from workers.nearest import meant
from workers.settings import LocalPath

Numbers = Mapping[str, float]
"""A number for each domain."""
Source = Literal["computed", "detected"] | Path
"""A placeholder for numbers by domain: a word if they are measured before training, or a file."""

_GIVEN_SUM_TOLERANCE = 1e-6  # people write 0.333333


def _sum_to_one(shares: dict[str, float]) -> dict[str, float]:
    total = math.fsum(shares.values())
    if abs(total - 1.0) > _GIVEN_SUM_TOLERANCE:
        remedy = f"divide each by {total:.9g} or correct one" if total > 0 else "give at least one of them a share"
        raise ValueError(f"shares sum to {total:.9g}, not to 1; {remedy}")
    return shares


def _json_file(path: Path) -> Path:
    if path.suffix != ".json":  # a misspelt word would pass for a path
        raise ValueError(f"{str(path)!r} is neither a known value nor the name of a .json file")
    return path


@dataclass(frozen=True)
class ByDomain:
    """Marks a field with a number for each domain, or with a word or file in their place."""

    what: Literal["shares", "losses"]
    """What the numbers are."""
    word: Literal["detected", "computed"]
    """Means that the numbers are measured before training."""
    key_in_file: str
    """Key of the numbers in a JSON file."""
    kind_of_file: str
    """How messages refer to such a file."""

    def read(self, path: Path) -> dict[str, float]:
        """The numbers in a file; ValueError if it is not JSON, KeyError or TypeError if it is another kind of file."""
        return cast(dict[str, float], read_json(path)[self.key_in_file])

    def source(self, value: object) -> Source | None:
        """The word or file that is a field's value; None for numbers and for other words."""
        return cast(Source, value) if value == self.word or isinstance(value, Path) else None


@dataclass(frozen=True)
class DomainName:
    """Marks a field that names the target domain."""


DISTRIBUTION = ByDomain("shares", "detected", "shares", "a file of shares by domain")
REFERENCES = ByDomain("losses", "computed", "loss_nats", "a file that `raymix reference` wrote")

NotNegative = Annotated[float, Field(ge=0)]
GivenShares = Annotated[dict[str, NotNegative], Field(min_length=1), AfterValidator(_sum_to_one)]
DistributionFile = Annotated[LocalPath, AfterValidator(_json_file)]
"""A JSON file {"shares": {domain: share}}, as `raymix detect` writes it."""
BaseDistribution = Annotated[Literal["detected"] | DistributionFile | GivenShares, DISTRIBUTION]
Initial = Annotated[Literal["uniform", "proportional", "detected"] | DistributionFile | GivenShares, DISTRIBUTION]
ReferenceLosses = Annotated[Literal["computed"] | LocalPath | dict[str, NotNegative], REFERENCES]
"""Losses in nats per token, a file that `raymix reference` wrote, or `computed`."""
TargetDomain = Annotated[str, DomainName()]

_IN_FILE = {DISTRIBUTION: TypeAdapter(GivenShares), REFERENCES: TypeAdapter(dict[str, NotNegative])}


@dataclass(frozen=True)
class Needs:
    """What must be known before training with a mixing algorithm, and its target domain."""

    distribution: Source | None = None
    """Where the base distribution comes from; None if it is not needed, or the shares are given."""
    references: Source | Numbers | None = None
    """Where the reference losses come from, or the losses themselves; None if they are not needed."""
    target: str | None = None
    """The target domain, if there is one."""


@dataclass(frozen=True)
class Measured:
    """Numbers by domain for the sources in the settings: measured for a word, read from a file."""

    distributions: Mapping[Source, Numbers] = field(default_factory=dict)
    references: Mapping[Source, Numbers] = field(default_factory=dict)

    def find(self, kind: ByDomain, source: Source | None) -> Numbers | None:
        """The numbers of a source; None if they are not known."""
        known = self.distributions if kind == DISTRIBUTION else self.references
        return None if source is None else known.get(source)


@dataclass(frozen=True)
class NumbersFile:
    """A file of numbers by domain that the settings name."""

    key: str
    """Key of the settings that names it."""
    path: Path
    kind: ByDomain

    def check(self, names: Sequence[str]) -> None:
        """ValueError, with the path, for a file without valid numbers for exactly these domains."""
        try:
            numbers = self.kind.read(self.path)
            check_keys(str(self.path), numbers, names)
            _IN_FILE[self.kind].validate_python(numbers)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in first["loc"])
            raise ValueError(f"{self.path}: {where}{first['msg'].removeprefix('Value error, ')}") from None
        except UnreadableFileError as error:
            raise ValueError(f"{self.path}: not {self.kind.kind_of_file}: it {error.reason}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}: not {self.kind.kind_of_file}: {error}") from None


def find_marks(field: FieldInfo) -> Iterator[object]:
    """The marks on the annotation of a field, those inside a union included."""
    yield from field.metadata
    yield from _marks_inside(field.annotation)


def _marks_inside(annotation: Any) -> Iterator[object]:
    yield from getattr(annotation, "__metadata__", ())
    for part in get_args(annotation):
        yield from _marks_inside(part)


def check_keys(what: str, values: Mapping[str, Any], names: Sequence[str]) -> None:
    """ValueError if values are not given for exactly these domains."""
    if unknown := [name for name in values if name not in names]:
        near = meant(unknown, names)
        raise ValueError(f"{what}: {unknown} are not domains of this run{near}; its domains are {list(names)}")
    if missing := [name for name in names if name not in values]:
        raise ValueError(f"{what}: no value for {missing}; give one for each of {list(names)}")


def check_target(key: str, target: str, names: Sequence[str]) -> None:
    if target not in names:
        near = meant([target], names)
        raise ValueError(f"mixing.{key}: {target!r} is not a trained domain{near}; choose from {list(names)}")
