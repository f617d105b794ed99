"""What `raymix tune` searches, how, and by which loss. No torch, no Ray."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from workers.nearest import meant
from workers.settings import Settings

if TYPE_CHECKING:
    from orchestrator.config.sweep import SweepConfig

_MADE_ONCE = ("training.strategy", "training.deepspeed", "training.micro_batch_size")
_STAGE_KEYS = ("training.learning_rate", "training.warmup_fraction")


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
Metric = Literal["mean", "worst", "target"] | dict[str, Annotated[float, Field(ge=0)]]


class AshaConfig(Settings):
    """Asynchronous successive halving: at each rung only the best 1 / reduction_factor of the trials there go on."""

    grace_steps: Annotated[int, Field(ge=1)]
    """Step of the first rung; no trial ends before it. Further rungs lie reduction_factor times further each. A rung
    counts at the first evaluation at or after it."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0
    """One of so many trials goes on."""


class SearchConfig(Settings):
    """What all searches have."""

    metric: Metric = "mean"
    """Held-out loss to minimise, in nats per token at the end: `mean` of the domains, the `worst` of them, the
    `target`'s (compare.target, or mixing.target), or a weight for each domain whose losses are summed so."""


class SampledSearchConfig(SearchConfig):
    """Trials whose values are drawn, each a whole run."""

    type: Literal["random", "optuna"]
    """`random` draws each trial alone; `optuna` (TPE) learns from the trials before."""
    space: Space
    """Dotted key below `mixing` or `training` -> distribution."""
    num_trials: Annotated[int, Field(ge=1)] = 16
    """Trials in all. Raised afterwards, the search goes on."""
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    """Trials at a time; default: as many as the cluster has room for. A trial takes what `cluster` says of a run."""
    asha: AshaConfig | None = None
    """Ends trials early whose metric is worse than others' at the same step; default: all train to their end."""


class PopulationConfig(SearchConfig):
    """Population based training: in each generation the worst go on from the best ones' models, with changed values."""

    type: Literal["pbt"]
    """Finds a course of values, not one: the result is a plan of stages."""
    space: Space
    """Dotted key -> distribution; keys that a stage can change: below `mixing`, training.learning_rate,
    training.warmup_fraction."""
    population: Annotated[int, Field(ge=2)] = 8
    """Members, side by side as far as there is room."""
    generations: Annotated[int, Field(ge=2)] = 4
    """Parts that training.max_steps is divided into."""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Part of the population that is replaced after a generation, and part that replaces it; at least one member."""
    resample_probability: Annotated[float, Field(ge=0, le=1)] = 0.25
    """How often a value of a replaced member is drawn anew; otherwise it moves by a fifth, a choice to a neighbour."""


class RegMixConfig(SearchConfig):
    """Mixture regression (RegMix): many short runs on random mixes, a regression of the losses on the mix, and one run
    of the mix that it predicts to be best."""

    type: Literal["regmix"]
    """Finds fixed shares."""
    num_trials: Annotated[int, Field(ge=4)] = 32
    """Runs to learn from; about five for each domain at the least."""
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    """Trials at a time; default: as many as the cluster has room for. A trial takes what `cluster` says of a run."""
    concentration: Annotated[float, Field(gt=0)] = 1.0
    """Of the Dirichlet distribution that the mixes come from."""


AnySearchConfig = Annotated[SampledSearchConfig | PopulationConfig | RegMixConfig, Field(discriminator="type")]


def check_search(config: "SweepConfig") -> None:
    """Refuse a search that cannot be done, as far as its values are not needed for that.

    Raises:
        ValueError: with the key and what to change.
    """
    search = config.search
    if search is None:
        return
    if config.stages:
        raise ValueError("search: a plan of stages cannot be searched over; leave out `stages`")
    if isinstance(search.metric, dict):
        if unknown := [name for name in search.metric if name not in config.domains]:
            near = meant(unknown, config.domains)
            raise ValueError(
                f"search.metric: {unknown} are not domains of this run{near}; they are {list(config.domains)}"
            )
        if not any(search.metric.values()):
            raise ValueError("search.metric: all weights are 0; give at least one domain some")
    if search.metric == "target" and not (config.compare.target or config.mixing.needs.target):
        raise ValueError("search.metric: target, but no domain is one; set compare.target")
    for key in getattr(search, "space", {}):
        _check_key(key)
    if isinstance(search, PopulationConfig):
        _check_population(config, search)
    if isinstance(search, RegMixConfig) and len(config.trained_domains) < 2:
        raise ValueError("search: regmix mixes domains, but only one is trained on; add another")


def _check_key(key: str) -> None:
    if not (key == "mixing" or key.startswith(("mixing.", "training."))):
        raise ValueError(f"search.space: {key!r} is not below mixing or training; all else is one for all trials")
    if key.startswith(_MADE_ONCE):
        raise ValueError(f"search.space: {key!r} is the same for all trials; `raymix compare` has variants of it")


def _check_population(config: "SweepConfig", search: PopulationConfig) -> None:
    steps = config.training.max_steps
    if steps is None or steps % search.generations:
        raise ValueError(
            f"search.generations: {search.generations} do not divide training.max_steps ({steps}); "
            "give steps, a multiple of the generations"
        )
    if config.training.schedule != "constant":
        raise ValueError(
            f"training.schedule: {config.training.schedule} would start anew in every generation of pbt; "
            "set it to constant"
        )
    if wrong := [key for key in search.space if not key.startswith("mixing") and key not in _STAGE_KEYS]:
        raise ValueError(f"search.space: {wrong} cannot change from one generation to the next; leave them out of pbt")
