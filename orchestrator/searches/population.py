"""Population based training: which run continues from which, and with which values. Pure; NumPy only.

    a member         a lineage: the point of each generation so far, each trained on from the model of the one before
    next generation  the worst quantile gives way to copies of random members of the best one, whose points are moved;
                     all others continue with the points they have

After Jaderberg et al. (arXiv 1711.09846), in step instead of asynchronously, and drawn from a seed: so a lineage is a
plan of stages like any other, stages that lineages share are trained once, and a search that was killed resumes.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from orchestrator.searches.base import Proposal, Search, SearchConfig, SearchedRun, Trial
from orchestrator.searches.space import Point, Space

_STAGE_KEYS = ("training.learning_rate", "training.warmup_fraction")
_MOVES = (0.8, 1.2)


class PopulationConfig(SearchConfig):
    """Population based training: in each generation the worst continue from models of the best, with other values."""

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
    """How often a value of a replaced member is drawn again; otherwise it moves by a fifth, a choice to a neighbour."""

    def check(self, run: SearchedRun) -> None:
        super().check(run)
        if run.max_steps is None or run.max_steps % self.generations:
            raise ValueError(
                f"search.generations: {self.generations} do not divide training.max_steps ({run.max_steps}); "
                "give steps, a multiple of the generations"
            )
        if run.schedule != "constant":
            raise ValueError(
                f"training.schedule: {run.schedule} would start again in every generation of pbt; set it to constant"
            )
        if wrong := [key for key in self.space if not key.startswith("mixing") and key not in _STAGE_KEYS]:
            raise ValueError(
                f"search.space: {wrong} cannot change from one generation to the next; leave them out of pbt"
            )


class Population(Search[PopulationConfig]):
    """A batch is a generation."""

    shows_last_batch_only = True

    def title(self, batch: int) -> str:
        return f"generation {batch} of {self.config.generations}"

    def next_trials(self, done: Sequence[Trial]) -> list[Proposal]:
        generation, size = len(done) // self.config.population, self.config.population
        if generation == self.config.generations:
            return []
        rng = np.random.default_rng([self.run.seed, generation])
        if not generation:
            return [self._propose(self.space.draw(rng), None) for _ in range(size)]
        before = done[-size:]
        ranked = sorted(range(size), key=lambda place: math.inf if (score := before[place].score) is None else score)
        num_replaced = max(1, int(self.config.quantile * size))
        best, worst = ranked[:num_replaced], ranked[-num_replaced:]
        following = []
        for place, trial in enumerate(before):
            if place in worst:
                parent = before[best[rng.integers(len(best))]].proposal
                following.append(self._propose(self._move(_point(parent), rng), parent))
            else:
                following.append(self._propose(_point(trial.proposal), trial.proposal))
        return following

    def conclude(self, done: Sequence[Trial]) -> list[str]:
        return ["(n): in generation n. The best member is a plan: a stage for each generation."]

    def _propose(self, point: Point, parent: Proposal | None) -> Proposal:
        assert self.run.max_steps is not None  # the settings are refused without
        num_steps = self.run.max_steps // self.config.generations
        return Proposal(self.space.changes(point), point, parent=parent, num_steps=num_steps)

    def _move(self, point: Point, rng: np.random.Generator) -> Point:
        moved: Point = {}
        for name, coordinate in self.space.coordinates.items():
            if rng.random() < self.config.resample_probability:
                moved[name] = coordinate.at(rng.random())
            elif coordinate.num_options is not None:
                moved[name] = coordinate.clip(point[name] + int(rng.choice((-1, 1))))
            else:
                moved[name] = coordinate.clip(point[name] * float(rng.choice(_MOVES)))
        return moved


def _point(proposal: Proposal) -> Point:
    assert proposal.point is not None  # all of them are points
    return proposal.point
