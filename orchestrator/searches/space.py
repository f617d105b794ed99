"""Points of a search space and the changes of a configuration that they stand for. Pure; NumPy only.

A sampler sees plain coordinates, each with its own bounds:

    uniform, loguniform    the value itself                        coordinate `key`
    choice                 the place of the option in its list     coordinate `key`
    simplex                for each domain a number u in (0, 1)    coordinates `key:domain`

The shares of a simplex are F^-1(u) / sum of all F^-1(u), with F the gamma distribution's function of that
concentration: for uniform u that is a Dirichlet draw, and every sampler can move u as it likes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator

from workers.settings import Settings

Point = dict[str, float]
"""Value of each coordinate; the place of an option is a whole number."""

_LOWEST, _HIGHEST = 0.001, 0.999  # of u: at 0 and 1 shares are not defined
_DRAWS_PER_POINT = 20  # a space of few options has no more points than it has


class Distribution(Settings):
    """Where the values of one key come from: exactly one of these."""

    uniform: tuple[float, float] | None = None
    """[low, high], all values alike."""
    loguniform: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None
    """[low, high], all orders of magnitude alike."""
    choice: Annotated[list[Any], Field(min_length=2)] | None = None
    """Any of these values; a mapping of another `type` replaces the run's whole section."""
    simplex: Annotated[float, Field(gt=0)] | None = None
    """Shares of the trained domains, from a Dirichlet distribution of this concentration: 1 makes all mixes alike,
    less prefers those of few domains, more those near uniform."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(type(self).model_fields)}, not {len(given)}")
        bounds = self.uniform or self.loguniform
        if bounds is not None and bounds[0] >= bounds[1]:
            raise ValueError(f"{given[0]}: the lower bound {bounds[0]:g} is not below the upper one {bounds[1]:g}")
        return self


Space = Annotated[dict[str, Distribution], Field(min_length=1)]


@dataclass(frozen=True)
class Coordinate:
    """What a sampler may choose for one coordinate."""

    low: float
    high: float
    is_logarithmic: bool = False
    num_options: int | None = None
    """Of a choice; its values are 0 .. num_options - 1."""

    def at(self, u: float) -> float:
        """The value at a fraction u in [0, 1) of the way."""
        if self.num_options is not None:
            return int(u * self.num_options)
        if self.is_logarithmic:
            return math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))
        return self.low + u * (self.high - self.low)

    def clip(self, value: float) -> float:
        return min(max(value, self.low), self.high)

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


class SearchSpace:
    """The coordinates of a space, the distribution of each dotted key, and how a point of them reads as changes.

    `domains` are the trained domains, whose shares a simplex is of.
    """

    def __init__(self, space: Mapping[str, Distribution], domains: Sequence[str]) -> None:
        self._space = dict(space)
        self._domains = list(domains)
        self.coordinates: dict[str, Coordinate] = {}
        for key, distribution in space.items():
            if distribution.simplex is not None:
                for domain in self._domains:
                    self.coordinates[f"{key}:{domain}"] = Coordinate(_LOWEST, _HIGHEST)
            else:
                self.coordinates[key] = _coordinate(distribution)

    def draw(self, rng: np.random.Generator) -> Point:
        """A point, each coordinate drawn by its distribution."""
        return {name: coordinate.at(rng.random()) for name, coordinate in self.coordinates.items()}

    def draw_points(self, number: int, seed: int) -> list[Point]:
        """Different points, the first ones the same whatever their number; fewer where the space has no more."""
        rng = np.random.default_rng(seed)
        points: list[Point] = []
        for _ in range(number * _DRAWS_PER_POINT):
            if len(points) == number:
                break
            if (point := self.draw(rng)) not in points:
                points.append(point)
        return points

    def holds(self, point: Mapping[str, float]) -> bool:
        names = self.coordinates
        return point.keys() == names.keys() and all(names[name].holds(value) for name, value in point.items())

    def changes(self, point: Mapping[str, float]) -> dict[str, Any]:
        """Dotted key -> value."""
        return {key: self._value(key, distribution, point) for key, distribution in self._space.items()}

    def corners(self) -> list[dict[str, Any]]:
        """Changes that together show every bound and every option once, for checking."""
        middle = {name: coordinate.at(0.5) for name, coordinate in self.coordinates.items()}
        values = {
            name: range(c.num_options) if c.num_options is not None else (c.low, c.high)
            for name, c in self.coordinates.items()
        }
        return [self.changes({**middle, name: value}) for name, of_one in values.items() for value in of_one]

    def _value(self, key: str, distribution: Distribution, point: Mapping[str, float]) -> Any:
        if distribution.simplex is not None:
            return self._shares([point[f"{key}:{domain}"] for domain in self._domains], distribution.simplex)
        if distribution.choice is not None:
            return distribution.choice[int(point[key])]
        return point[key]

    def _shares(self, u_D: Sequence[float], concentration: float) -> dict[str, float]:
        from scipy.special import gammaincinv

        amount_D = gammaincinv(concentration, np.asarray(u_D))
        return dict(zip(self._domains, (amount_D / amount_D.sum()).tolist(), strict=True))


def _coordinate(distribution: Distribution) -> Coordinate:
    if distribution.choice is not None:
        return Coordinate(0, len(distribution.choice) - 1, num_options=len(distribution.choice))
    bounds = distribution.uniform or distribution.loguniform
    assert bounds is not None  # the settings have exactly one
    return Coordinate(*bounds, is_logarithmic=distribution.loguniform is not None)
