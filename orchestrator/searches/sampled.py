"""Random search and Optuna's TPE: trials whose values are drawn, by Ray Tune, which can end them early (ASHA)."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from orchestrator.searches.base import Proposal, Search, SearchConfig, Trial
from orchestrator.searches.space import Space
from workers.settings import Settings


class AshaConfig(Settings):
    """Asynchronous successive halving: at each rung only the best 1 / reduction_factor of the trials there go on."""

    grace_steps: Annotated[int, Field(ge=1)]
    """Step of the first rung; no trial ends before it. Further rungs lie reduction_factor times further each. A rung
    counts at the first evaluation at or after it."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0
    """At each rung, one trial out of this many continues."""


class SampledSearchConfig(SearchConfig):
    """Trials whose values are drawn, each a whole run."""

    type: Literal["random", "optuna"]
    """`random` draws each trial alone; `optuna` (TPE) learns from the trials before."""
    space: Space
    """Dotted key below `mixing` or `training` -> distribution."""
    num_trials: Annotated[int, Field(ge=1)] = 16
    """Trials in all. If it is raised later, the same command continues the search."""
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    """Trials at a time; default: as many as the cluster has room for. A trial takes what `cluster` says of a run."""
    asha: AshaConfig | None = None
    """Ends trials early whose metric is worse than others' at the same step; default: all train to their end."""


class Sampled(Search[SampledSearchConfig]):
    """Points of the space, trained by Ray Tune."""

    def next_trials(self, done: Sequence[Trial]) -> list[Proposal]:
        """All trials of a random search; Optuna draws each when it has seen those before."""
        if done or self.config.type == "optuna":
            return []
        return self.draw(self.config.num_trials)
