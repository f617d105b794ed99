"""Who goes on from whom."""

from orchestrator.config.search import Distribution, PopulationConfig
from orchestrator.sweeps.tune.population import Lineage, first_generation, next_generation
from orchestrator.sweeps.tune.space import SearchSpace
from tests.unit.search.searches import DOMAINS

SPACE = SearchSpace(
    {
        "mixing.sigma": Distribution(uniform=(0.1, 1.0)),
        "mixing.update": Distribution(choice=["ratio", "exponential", "loss"]),
    },
    DOMAINS,
)


def settings(**changes: float) -> PopulationConfig:
    space = {"mixing.sigma": {"uniform": [0.1, 1.0]}}
    return PopulationConfig.model_validate({"type": "pbt", "space": space, "resample_probability": 0.0} | changes)


def population(size: int = 8) -> list[Lineage]:
    return first_generation(SPACE, size, seed=4)


def test_the_worst_give_way_to_the_best_and_the_rest_goes_on() -> None:
    lineages, scores = population(), [5.0, 1.0, 3.0, 8.0, 2.0, 7.0, 4.0, 6.0]
    following = next_generation(lineages, scores, SPACE, settings(quantile=0.25), seed=4)
    for place in (0, 1, 2, 4, 6, 7):
        assert following[place] == (lineages[place][0], lineages[place][0])
    for place in (3, 5):
        assert following[place][0] in (lineages[1][0], lineages[4][0])


def test_values_of_a_copy_move_by_a_fifth_within_their_bounds() -> None:
    lineages = population(2)
    for seed in range(30):
        copy = next_generation(lineages, [1.0, 2.0], SPACE, settings(quantile=0.5), seed)[1]
        parent, moved = lineages[0][0], copy[1]
        candidates = [min(max(parent["mixing.sigma"] * factor, 0.1), 1.0) for factor in (0.8, 1.2)]
        assert copy[0] == parent and moved["mixing.sigma"] in candidates
        assert SPACE.holds(moved) and abs(moved["mixing.update"] - parent["mixing.update"]) <= 1


def test_at_least_one_gives_way_and_a_failed_one_first() -> None:
    lineages = population(3)
    following = next_generation(lineages, [2.0, float("inf"), 1.0], SPACE, settings(quantile=0.1), seed=0)
    assert following[1][0] == lineages[2][0]
    assert following[0][0] == lineages[0][0]


def test_drawing_anew_leaves_the_parents_neighbourhood() -> None:
    lineages = population(2)
    copies = [
        next_generation(lineages, [1.0, 2.0], SPACE, settings(quantile=0.5, resample_probability=1.0), seed)[1][1]
        for seed in range(20)
    ]
    assert len({copy["mixing.sigma"] for copy in copies}) == 20


def test_the_same_seed_and_scores_give_the_same_generation() -> None:
    lineages, scores = population(), [5.0, 1.0, 3.0, 8.0, 2.0, 7.0, 4.0, 6.0]
    again = [next_generation(lineages, scores, SPACE, settings(), seed=7) for _ in range(2)]
    assert again[0] == again[1]
    longer = next_generation(again[0], scores, SPACE, settings(), seed=7)
    assert all(len(lineage) == 3 for lineage in longer)
    assert [lineage[:2] for lineage in longer][1] == again[0][1]
