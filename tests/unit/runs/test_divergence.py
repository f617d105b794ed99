"""What counts as a training loss that rose for good, and what does not."""

import math
import random

import pytest

from orchestrator.runs.step_table import StepTable
from orchestrator.runs.verdict import find_divergence


def table(levels: dict[str, list[float]], num_steps: int = 100, noise: float = 0.0, seed: int = 0) -> StepTable:
    """Training losses that follow these levels, each held for its part of the steps."""
    rng = random.Random(seed)
    made = StepTable()
    for step in range(1, num_steps + 1):
        losses = {name: at[(step - 1) * len(at) // num_steps] + rng.gauss(0, noise) for name, at in levels.items()}
        drawn = {name: loss for name, loss in losses.items() if math.isfinite(loss)}
        mean = sum(drawn.values()) / len(drawn)
        made.append({"step": step, "loss_nats": mean, "domain_loss_nats": losses})
    return made


@pytest.mark.parametrize(
    ("levels", "is_diverged"),
    [
        ([7.0, 4.0, 3.0, 2.0, 1.5], False),
        ([2.0, 9.0, 4.0, 2.0, 1.9], False),  # a spike that it came back from
        ([2.0, 2.0, 2.0, 2.0, 2.2], False),
        ([2.1, 6.0, 7.0, 6.5, 6.4], True),  # high from the beginning, as with a learning rate that is too high
        ([7.0, 1.0, 6.0, 6.0, 6.0], True),  # below where it began, yet it rose for good
        ([0.02, 0.01, 0.01, 0.4, 0.4], False),  # less than half a nat
        ([9.0, 8.0, 7.0, 7.6, 7.8], False),  # less than a quarter
        ([3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 5.0], False),  # at the very end: nobody knows whether for good
    ],
)
def test_a_rise_is_divergence_where_it_is_large_and_stays(levels: list[float], is_diverged: bool) -> None:
    for noise, seed in ((0.0, 0), (0.1, 1), (0.1, 2)):
        found = find_divergence(table({"a": levels, "b": levels}, noise=noise, seed=seed))
        assert (found is not None) == is_diverged


def test_it_says_where_the_loss_was_lowest_and_where_it_is() -> None:
    found = find_divergence(table({"a": [4.0, 1.0, 6.0, 6.0, 5.0], "b": [5.0, 2.0, 7.0, 7.0, 7.0]}))
    assert found is not None
    assert (found.loss_nats_lowest, found.loss_nats_end) == (1.5, 6.0) and 20 < found.step <= 40


def test_one_domain_of_many_that_rises_is_forgotten_not_diverged() -> None:
    falls = {name: [3.0, 2.5, 2.0, 1.5, 1.0] for name in "abcdef"}
    assert find_divergence(table(falls | {"law": [1.0, 1.0, 2.0, 2.5, 3.0]})) is None


def test_a_mixture_that_turns_to_a_harder_domain_is_not_divergence() -> None:
    """The loss over all rows rises, that of each domain does not."""
    made = StepTable()
    for step in range(1, 101):
        share = step / 100
        losses = {"easy": 0.5, "hard": 5.0}
        made.append({"step": step, "loss_nats": 0.5 * (1 - share) + 5.0 * share, "domain_loss_nats": losses})
    assert find_divergence(made) is None


def test_a_domain_that_is_not_always_drawn_does_not_hide_it() -> None:
    levels = {"a": [2.0, 2.0, 6.0, 6.0, 6.0], "rare": [math.nan, math.nan, 1.0, math.nan, math.nan]}
    assert find_divergence(table(levels)) is not None


@pytest.mark.parametrize("num_steps", [0, 1, 4, 19])
def test_too_few_steps_tell_nothing(num_steps: int) -> None:
    assert find_divergence(table({"a": [1.0, 9.0, 9.0]}, num_steps)) is None
    assert num_steps or find_divergence(StepTable()) is None
