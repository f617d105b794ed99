"""Who goes on from whom."""

import math

from orchestrator.searches import Proposal, SearchedRun, Trial
from orchestrator.searches.population import Population, PopulationConfig
from tests.unit.sweeps.tune.searches import DOMAINS

SPACE = {"mixing.sigma": {"uniform": [0.1, 1.0]}, "mixing.update": {"choice": ["ratio", "exponential", "loss"]}}


def population(size: int = 8, seed: int = 4, **changes: float) -> Population:
    settings = {"type": "pbt", "space": SPACE, "population": size, "resample_probability": 0.0} | changes
    run = SearchedRun(DOMAINS, DOMAINS, seed, max_steps=40)
    return Population(PopulationConfig.model_validate(settings), run)


def trained(proposals: list[Proposal], scores: list[float]) -> list[Trial]:
    return [
        Trial(proposal, str(place), "finished", {}, score if math.isfinite(score) else None)
        for place, (proposal, score) in enumerate(zip(proposals, scores, strict=True))
    ]


def points(proposal: Proposal) -> list[dict[str, float] | None]:
    return [each.point for each in proposal.chain]


def test_the_worst_give_way_to_the_best_and_the_rest_goes_on() -> None:
    search = population(quantile=0.25)
    first = search.next_trials([])
    following = search.next_trials(trained(first, [5.0, 1.0, 3.0, 8.0, 2.0, 7.0, 4.0, 6.0]))
    for place in (0, 1, 2, 4, 6, 7):
        assert points(following[place]) == [first[place].point, first[place].point]
    for place in (3, 5):
        assert following[place].parent in (first[1], first[4])
    assert all(each.num_steps == 10 for each in [*first, *following])


def test_values_of_a_copy_move_by_a_fifth_within_their_bounds() -> None:
    first = population(2).next_trials([])
    for seed in range(30):
        search = population(2, seed, quantile=0.5)
        parent, moved = points(search.next_trials(trained(first, [1.0, 2.0]))[1])
        assert parent is not None and moved is not None
        candidates = [min(max(parent["mixing.sigma"] * factor, 0.1), 1.0) for factor in (0.8, 1.2)]
        assert parent == first[0].point and moved["mixing.sigma"] in candidates
        assert search.space.holds(moved) and abs(moved["mixing.update"] - parent["mixing.update"]) <= 1


def test_at_least_one_gives_way_and_a_failed_one_first() -> None:
    search = population(3, quantile=0.1)
    first = search.next_trials([])
    following = search.next_trials(trained(first, [2.0, math.inf, 1.0]))
    assert following[1].parent == first[2] and following[0].parent == first[0]


def test_drawing_again_leaves_the_parents_neighbourhood() -> None:
    first = population(2).next_trials([])
    copies = [
        population(2, seed, quantile=0.5, resample_probability=1.0).next_trials(trained(first, [1.0, 2.0]))[1]
        for seed in range(20)
    ]
    assert len({copy.changes["mixing.sigma"] for copy in copies}) == 20


def test_the_same_seed_and_scores_give_the_same_generations_to_the_last() -> None:
    search, scores = population(seed=7), [5.0, 1.0, 3.0, 8.0, 2.0, 7.0, 4.0, 6.0]
    done = trained(search.next_trials([]), scores)
    for length in (2, 3, 4):
        again = [search.next_trials(done) for _ in range(2)]
        assert again[0] == again[1] and all(len(each.chain) == length for each in again[0])
        done += trained(again[0], scores)
    assert search.next_trials(done) == []
