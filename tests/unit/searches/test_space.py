"""Points, and the changes that they stand for."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import dirichlet, kstest

from orchestrator.searches.space import Distribution, SearchSpace
from tests.unit.sweeps.tune.searches import DOMAINS

SPACE = SearchSpace(
    {
        "mixing.sigma": Distribution(uniform=(0.2, 0.6)),
        "training.learning_rate": Distribution(loguniform=(1e-5, 1e-2)),
        "mixing.update": Distribution(choice=["ratio", "exponential", "loss"]),
        "mixing.initial": Distribution(simplex=1.0),
    },
    DOMAINS,
)


def test_a_sampler_sees_plain_coordinates() -> None:
    assert list(SPACE.coordinates) == [
        "mixing.sigma",
        "training.learning_rate",
        "mixing.update",
        *(f"mixing.initial:{name}" for name in DOMAINS),
    ]
    assert SPACE.coordinates["training.learning_rate"].is_logarithmic
    assert SPACE.coordinates["mixing.update"].num_options == 3


def test_values_are_spread_as_their_distribution_says() -> None:
    points = SPACE.draw_points(2000, seed=3)
    sigma = np.array([point["mixing.sigma"] for point in points])
    rate = np.array([point["training.learning_rate"] for point in points])
    assert kstest(sigma, "uniform", args=(0.2, 0.4)).pvalue > 0.01
    assert kstest(np.log10(rate), "uniform", args=(-5, 3)).pvalue > 0.01
    options = np.bincount([int(point["mixing.update"]) for point in points])
    assert len(options) == 3 and options.min() > 600


@pytest.mark.parametrize("concentration", [0.5, 1.0, 4.0])
def test_shares_of_a_simplex_follow_a_dirichlet_distribution(concentration: float) -> None:
    space = SearchSpace({"mixing.shares": Distribution(simplex=concentration)}, DOMAINS)
    drawn = [space.changes(point)["mixing.shares"] for point in space.draw_points(3000, seed=1)]
    shares = np.array([[mix[name] for name in DOMAINS] for mix in drawn])
    assert np.allclose(shares.sum(axis=1), 1.0) and (shares >= 0).all()
    expected = dirichlet([concentration] * 3)
    assert shares.mean(axis=0) == pytest.approx(expected.mean(), abs=0.02)
    assert shares.var(axis=0) == pytest.approx(expected.var(), rel=0.12)


def test_points_differ_and_more_of_them_begin_with_the_same() -> None:
    few, many = SPACE.draw_points(4, seed=9), SPACE.draw_points(9, seed=9)
    assert many[:4] == few and SPACE.draw_points(4, seed=8) != few
    small = SearchSpace({"mixing.update": Distribution(choice=["ratio", "loss"])}, DOMAINS)
    assert sorted(point["mixing.update"] for point in small.draw_points(6, seed=0)) == [0, 1]


def test_a_point_reads_as_changes() -> None:
    point = dict.fromkeys(SPACE.coordinates, 0.5) | {"mixing.update": 1, "training.learning_rate": 1e-3}
    changes = SPACE.changes(point)
    assert changes["mixing.sigma"] == 0.5 and changes["training.learning_rate"] == 1e-3
    assert changes["mixing.update"] == "exponential"
    assert changes["mixing.initial"] == pytest.approx(dict.fromkeys(DOMAINS, 1 / 3))


def test_it_knows_its_own_points() -> None:
    (point,) = SPACE.draw_points(1, seed=0)
    assert SPACE.holds(point)
    assert not SPACE.holds(point | {"mixing.sigma": 0.7})
    assert not SPACE.holds(point | {"mixing.floor": 0.1})
    assert not SPACE.holds({name: value for name, value in point.items() if name != "mixing.sigma"})


def test_the_corners_show_every_bound_and_every_option() -> None:
    corners = SPACE.corners()
    assert {corner["mixing.update"] for corner in corners} == {"ratio", "exponential", "loss"}
    assert {corner["mixing.sigma"] for corner in corners} >= {0.2, 0.6}
    assert {corner["training.learning_rate"] for corner in corners} >= {1e-5, 1e-2}


def test_a_share_grows_with_its_coordinate() -> None:
    space = SearchSpace({"mixing.shares": Distribution(simplex=2.0)}, DOMAINS)
    middle = dict.fromkeys(space.coordinates, 0.5)
    shares = [space.changes(middle | {"mixing.shares:code": u})["mixing.shares"]["code"] for u in (0.1, 0.5, 0.9)]
    assert all(before < after for before, after in pairwise(shares))
