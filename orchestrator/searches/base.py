"""What every search is: a space, the one number that it minimises, the runs to train next given the results so far, and
what follows from all of them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from orchestrator.mixing import MixingConfig
from orchestrator.searches.space import Distribution, Point, SearchSpace
from workers.nearest import refuse_unknown
from workers.plugins import type_parameter
from workers.settings import Settings

Array = NDArray[np.float64]
Metric = Literal["mean", "worst", "target"] | dict[str, Annotated[float, Field(ge=0)]]
_MADE_ONCE = ("training.strategy", "training.deepspeed", "training.micro_batch_size")
State = Literal["finished", "ended early", "failed", "unfinished"]


@dataclass(frozen=True)
class SearchedRun:
    """What a search knows of the run that it varies."""

    domains: Sequence[str]
    trained_domains: Sequence[str]
    seed: int
    target: str | None = None
    """The domain that is to be learned."""
    max_steps: int | None = None
    schedule: str = "constant"


class SearchConfig(Settings):
    """What all searches have."""

    if TYPE_CHECKING:  # each search declares them itself: fields of this class come first in the schema
        type: str
        space: Mapping[str, Distribution]

    metric: Metric = "mean"
    """Held-out loss to minimise, in nats per token at the end: `mean` of the domains, the `worst` of them, the
    `target`'s (compare.target, or mixing.target), or a weight for each domain whose losses are summed so."""

    @property
    def distributions(self) -> Mapping[str, Distribution]:
        """Dotted key -> where its values come from; by default the field `space`."""
        return self.space

    def check(self, run: SearchedRun) -> None:
        """Refuse what does not fit the run, before anything is prepared for it.

        ValueError, with the key and what to change.
        """
        if isinstance(self.metric, dict):
            refuse_unknown("search.metric", self.metric, run.domains)
            if not any(self.metric.values()):
                raise ValueError("search.metric: all weights are 0; give at least one domain a weight above 0")
        if self.metric == "target" and not run.target:
            raise ValueError("search.metric: target, but no domain is one; set compare.target")
        for key in self.distributions:
            if not (key == "mixing" or key.startswith(("mixing.", "training."))):
                raise ValueError(
                    f"search.space: {key!r} is not below mixing or training; everything else is the same for all trials"
                )
            if key.startswith(_MADE_ONCE):
                told = "is the same for all trials; `raymix compare` has variants of it"
                raise ValueError(f"search.space: {key!r} {told}")


@dataclass(frozen=True)
class Proposal:
    """A run to train.

    One with `num_steps` is a stage of a plan: it trains for these steps from the model of its `parent`, or from the
    base model. Stages can change keys below `mixing`, training.learning_rate and training.warmup_fraction.
    """

    changes: Mapping[str, Any]
    """Dotted key -> value."""
    point: Point | None = None
    """Of the space, where the changes are those of a point."""
    kind: str = "trial"
    """First part of the name of the run's folder."""
    parent: Self | None = None
    num_steps: int | None = None

    @property
    def chain(self) -> list[Self]:
        """The stages up to this one, first to last."""
        return [*(self.parent.chain if self.parent else []), self]


@dataclass(frozen=True)
class Trial:
    """What came of a proposal."""

    proposal: Proposal
    name: str
    state: State
    losses_nats: Mapping[str, float | None]
    """Of each domain at the end, in nats per token; None where it was not finite."""
    score: float | None
    """The metric at the end, lower is better; None without one."""


Config = TypeVar("Config", bound=SearchConfig)


class Search(ABC, Generic[Config]):
    """A search over the variants of one run. It keeps nothing: all that it knows are the trials so far.

    So a search that was stopped is repeated from the beginning, and finds on disk what it has trained: the same trials
    have to lead to the same proposals.
    """

    config_class: ClassVar[type[SearchConfig]]
    shows_last_batch_only: ClassVar[bool] = False
    """Whether earlier runs are parts of the last ones, not separate results."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if config_class := type_parameter(cls, SearchConfig):
            cls.config_class = config_class

    def __init__(self, config: Config, run: SearchedRun) -> None:
        self.config, self.run = config, run
        self.space = SearchSpace(config.distributions, run.trained_domains)

    @abstractmethod
    def next_trials(self, done: Sequence[Trial]) -> list[Proposal]:
        """What to train next, side by side; nothing at the end.

        `done` are all trials so far, those of a batch in the order in which they were proposed.
        """

    def draw(self, number: int) -> list[Proposal]:
        """Different points, the first ones the same whatever their number; fewer where the space has no more."""
        return [Proposal(self.space.changes(each), each) for each in self.space.draw_points(number, self.run.seed)]

    @property
    def max_concurrent(self) -> int | None:
        """Trials at a time; None: as many as the cluster has room for."""
        return None

    def vary(self, mixing: MixingConfig) -> MixingConfig:
        """The mixing settings that the changes are applied to."""
        return mixing

    def title(self, batch: int) -> str:
        """Name of a batch for the user; the first is 1."""
        return f"batch {batch}"

    def conclude(self, done: Sequence[Trial]) -> list[str]:
        """Notes for the reader of the results."""
        return []


def score_losses(metric: Metric, losses_ND: Array, domains: Sequence[str], target: str | None) -> Array:
    """The metric of each row, in nats per token, lower is better; NaN where a loss that it needs is NaN.

    `losses_ND` has a column for each domain, in nats per token; `target` is the domain of the metric `target`.
    """
    if metric == "worst":
        return losses_ND.max(axis=1)
    weights = metric if isinstance(metric, dict) else {target: 1.0} if metric == "target" else None
    weight_D = np.array([1.0 / len(domains) if weights is None else weights.get(name, 0.0) for name in domains])
    counts_D = weight_D > 0
    return losses_ND[:, counts_D] @ weight_D[counts_D]


def describe_metric(metric: Metric, target: str | None) -> str:
    if isinstance(metric, dict):
        return "loss " + " + ".join(f"{weight:g} {name}" for name, weight in metric.items() if weight)
    return f"loss of {target}" if metric == "target" else f"{metric} loss"
