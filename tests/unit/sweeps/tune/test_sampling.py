"""What Ray Tune is asked for: Optuna with a memory, ASHA's rungs."""

from types import SimpleNamespace

from orchestrator.searches.sampled import AshaConfig
from orchestrator.searches.space import Distribution, Point, SearchSpace
from orchestrator.sweeps.tune.sampling import _asha, _optuna
from orchestrator.sweeps.tune.trials import Trials
from tests.unit.sweeps.tune.searches import DOMAINS, config_with

SPACE = SearchSpace(
    {
        "mixing.sigma": Distribution(uniform=(0.1, 1.0)),
        "training.learning_rate": Distribution(loguniform=(1e-5, 1e-2)),
        "mixing.update": Distribution(choice=["ratio", "exponential"]),
    },
    DOMAINS,
)


def suggestions(points: list[Point], number: int, num_trials: int = 20) -> list[Point]:
    """What Optuna says, told after each that sigma is the loss."""
    base = config_with({"type": "optuna", "space": {"mixing.sigma": {"uniform": [0.1, 1.0]}}})
    searcher = _optuna(Trials(base, SPACE, {}, "mean", None), points, num_trials, seed=1)
    suggested = []
    for index in range(number):
        point = searcher.suggest(str(index))["point"]
        searcher.on_trial_complete(str(index), {"score": point["mixing.sigma"]})
        suggested.append(point)
    return suggested


def test_known_points_come_first_and_are_not_drawn_again() -> None:
    first = suggestions([], 3)
    again = suggestions(first, 6)
    assert again[:3] == first
    assert all(point not in first for point in again[3:])
    assert all(SPACE.holds(point) for point in again)


def test_orders_of_magnitude_are_drawn_alike() -> None:
    rates = sorted(point["training.learning_rate"] for point in suggestions([], 12, num_trials=40))
    assert rates[4] < 1e-3  # a third of the values below two thirds of the orders


def test_it_learns_where_the_loss_is_low() -> None:
    suggested = [point["mixing.sigma"] for point in suggestions([], 20)]
    assert sum(suggested[-5:]) / 5 < 0.3 < sum(suggested[:5]) / 5


def test_at_a_rung_the_worse_trials_end() -> None:
    scheduler = _asha(AshaConfig(grace_steps=4, reduction_factor=2))
    scheduler.set_search_properties("score", "min")
    decisions = {}
    for name, score in (("good", 1.0), ("bad", 3.0), ("better", 0.5)):
        trial = SimpleNamespace(trial_id=name)
        scheduler.on_trial_add(None, trial)
        decisions[name] = [
            scheduler.on_trial_result(None, trial, {"step": step, "score": score}) for step in (3, 4, 5, 8)
        ]
    assert decisions["good"] == ["CONTINUE"] * 4 and decisions["better"] == ["CONTINUE"] * 4
    assert decisions["bad"][:2] == ["CONTINUE", "STOP"]
