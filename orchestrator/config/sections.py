"""Sections of the verbs that train many runs: compare, study and coarse-search. No torch, no Ray."""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from workers.settings import Seed, Settings
from workers.strategies.cofitune.config import Module, ModuleSet

Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$")]


class CompareConfig(Settings):
    """Variants of the run, by label."""

    variants: dict[Label, dict[str, Any]] = Field(default_factory=dict)
    """Label -> what the variant changes: keys of the configuration, nested or dotted. A section of another `type` (or
    `plan`) replaces the run's, any other mapping is merged into it."""
    target: str | None = None
    """Domain that is to be learned: also compare its gain, and what happens to all others. Default: mixing.target."""


Grid = Literal["single", "mix", "fixed_general", "fixed_special", "small_general"]
Strategy = Literal["multi_task", "sequential", "mixed_sequential", "dmt"]
GRIDS: tuple[Grid, ...] = get_args(Grid)
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


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


Modules = Annotated[list[Module | ModuleSet], Field(min_length=1)]


class CoarseSearchConfig(Settings):
    """CoFiTune's tree search for the layers and modules to train; see orchestrator/sweeps/coarse/tree.py."""

    speciality: Annotated[list[str], Field(min_length=1)]
    """Domains to learn, the only ones that are trained on; all others count as versatility."""
    versatility_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of Vers in Uni = Spec + weight * Vers."""
    num_seeds: Annotated[int, Field(ge=1)] = 2
    """Seeds that each node is trained with; scores are means over them."""
    beam_width: Annotated[int, Field(ge=1)] = 1
    """Ranges of layers kept after a step; each costs up to 4 further nodes in step 2 and 3 in step 3."""
    tie_margin: Annotated[float, Field(ge=0)] = 0.01
    """Ranges whose Uni is by at most this below the best one's are kept as well."""
    module_sets: Annotated[list[Modules], Field(min_length=1)] = Field(
        default=[["attention"], ["feed_forward"], ["up"], ["down"], ["attention", "feed_forward"]]
    )
    """Sets of modules that the last step compares."""
    scores: Literal["losses", "files"] = "losses"
    """`losses` scores nodes by the held-out losses of the domains. `files` keeps every model and reads what you
    measured on it from task_scores.json in its run's folder: {"speciality": 0.41, "versatility": 0.63}. If such
    files are missing, the search stops and names them; run the same command to resume."""
