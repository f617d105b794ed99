"""Population based training: who goes on from whom, and with which values. Pure; NumPy only.

    a member         a lineage: the point of each generation so far, each trained on from the model of the one before
    next generation  the worst quantile gives way to copies of random members of the best one, whose points are moved;
                     all others go on with the points they have

After Jaderberg et al. (arXiv 1711.09846), in step instead of asynchronously, and drawn from a seed: so a lineage is a
plan of stages like any other, stages that lineages share are trained once, and a search that was killed goes on.
"""

from collections.abc import Sequence

import numpy as np

from orchestrator.config.search import PopulationConfig
from orchestrator.sweeps.tune.space import Point, SearchSpace

Lineage = tuple[Point, ...]
_MOVES = (0.8, 1.2)


def first_generation(space: SearchSpace, size: int, seed: int) -> list[Lineage]:
    """Random points."""
    rng = np.random.default_rng([seed, 0])
    return [(space.draw(rng),) for _ in range(size)]


def next_generation(
    lineages: Sequence[Lineage], scores: Sequence[float], space: SearchSpace, settings: PopulationConfig, seed: int
) -> list[Lineage]:
    """Every lineage one point longer.

    Args:
        lineages: those that were trained.
        scores: of each, lower is better; infinite for one that failed.
        space: where points lie.
        settings: quantile and probability of drawing anew.
        seed: of the search.
    """
    rng = np.random.default_rng([seed, len(lineages[0])])
    ranked = sorted(range(len(lineages)), key=lambda place: scores[place])
    num_replaced = max(1, int(settings.quantile * len(lineages)))
    best, worst = ranked[:num_replaced], ranked[-num_replaced:]
    following = []
    for place, lineage in enumerate(lineages):
        if place in worst:
            parent = lineages[best[rng.integers(len(best))]]
            following.append((*parent, _move(parent[-1], space, settings.resample_probability, rng)))
        else:
            following.append((*lineage, lineage[-1]))
    return following


def _move(point: Point, space: SearchSpace, resample_probability: float, rng: np.random.Generator) -> Point:
    moved: Point = {}
    for name, coordinate in space.coordinates.items():
        if rng.random() < resample_probability:
            moved[name] = coordinate.at(rng.random())
        elif coordinate.num_options is not None:
            moved[name] = coordinate.clip(point[name] + int(rng.choice((-1, 1))))
        else:
            moved[name] = coordinate.clip(point[name] * float(rng.choice(_MOVES)))
    return moved
