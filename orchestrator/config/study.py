"""What a study of data composition compares. No torch, no Ray."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from workers.nearest import meant
from workers.settings import Seed, Settings

if TYPE_CHECKING:
    from orchestrator.config.sweep import SweepConfig

Grid = Literal["single", "mix", "fixed_general", "fixed_special", "small_general"]
Strategy = Literal["multi_task", "sequential", "mixed_sequential", "dmt"]
GRIDS: tuple[Grid, ...] = ("single", "mix", "fixed_general", "fixed_special", "small_general")
STRATEGIES: tuple[Strategy, ...] = ("multi_task", "sequential", "mixed_sequential", "dmt")


class StudyConfig(Settings):
    """The grids of the paper's research questions (arXiv 2310.05492), over the run's own settings.

    single: each domain alone, the fraction k of it. mix: k of every domain. fixed_general: all specialised data and k
    of the general. fixed_special: all general data and k of the specialised. small_general: `small_fraction` of the
    general data and k of the specialised. The strategies: see orchestrator/sweeps/stages.
    """

    specialised: Annotated[list[str], Field(min_length=1)]
    """Domains with a special ability."""
    general: Annotated[list[str], Field(min_length=1)]
    """Domains of general ability."""
    k: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)] = Field(
        default=[1 / 256, 1 / 64, 1 / 16, 1 / 4, 1]
    )
    """Fractions of the data, for grids and dmt; 0 is of use to dmt alone, where it is mixed_sequential."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(default=[0])
    """Seeds of each cell; the n-th also moves the sub-samples' data.sample_seed by n - 1."""
    grids: list[Grid] = Field(default=list(GRIDS))
    """Grids to run."""
    strategies: list[Strategy] = Field(default=list(STRATEGIES))
    """Strategies to run."""
    small_fraction: Annotated[float, Field(gt=0, le=1)] = 1 / 64
    """Fraction of the general data in small_general."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Budget of every stage in passes over its rows, as in the paper; default: what `training` says."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Budget of every cell in optimizer steps, divided evenly among its stages: amounts compared at equal steps."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Budget of every cell in tokens, divided evenly among its stages: amounts compared at equal tokens."""
    num_resamples: Annotated[int, Field(ge=100)] = 2000
    """Bootstrap resamples behind every interval."""

    @field_validator("k", "seeds", "grids", "strategies", "specialised", "general")
    @classmethod
    def _each_once(cls, value: list[object]) -> list[object]:
        if twice := sorted({str(item) for item in value if value.count(item) > 1}):
            raise ValueError(f"{', '.join(twice)} given more than once; keep one")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if both := sorted(set(self.specialised) & set(self.general)):
            raise ValueError(f"{both} are both specialised and general; make each the one or the other")
        if not (self.grids or self.strategies):
            raise ValueError("compares nothing; give grids or strategies")
        given = [key for key in ("epochs", "max_steps", "max_tokens") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of {' and '.join(given)}")
        return self


def check_study(config: "SweepConfig") -> None:
    """Refuse a study that names other domains than the run trains on, or a plan of stages beside it.

    Raises:
        ValueError: with the key and what to change.
    """
    study = config.study
    if study is None:
        return
    trained: Sequence[str] = config.trained_domains
    for key in ("specialised", "general"):
        if unknown := [name for name in getattr(study, key) if name not in trained]:
            near = meant(unknown, trained)
            raise ValueError(
                f"study.{key}: {unknown} are not trained domains of this run{near}; they are {list(trained)}"
            )
    if config.stages:
        raise ValueError("study: it makes its own plans of stages; leave out stages")
