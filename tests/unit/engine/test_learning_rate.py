"""The learning rate's course: warm-up to the peak, then down, without state."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.config.training import TrainingConfig
from workers.engine.optimizer import learning_rate


def training(**settings: Any) -> TrainingConfig:
    return TrainingConfig(max_steps=1, learning_rate=1.0, **settings)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.8535533906, 0.5, 0.1464466094]),
    ],
)
def test_worked_courses(schedule: str, expected: list[float]) -> None:
    settings = training(schedule=schedule, warmup_fraction=1 / 3)
    assert [learning_rate(step, 6, settings) for step in range(1, 7)] == pytest.approx(expected)


@given(st.integers(1, 3000), st.floats(0, 0.99), st.sampled_from(["constant", "linear", "cosine"]))
def test_it_rises_to_the_peak_then_never_rises_and_is_never_zero(num_steps: int, warmup: float, schedule: str) -> None:
    settings = training(schedule=schedule, warmup_fraction=warmup)
    rates = [learning_rate(step, num_steps, settings) for step in range(1, num_steps + 1)]
    top = rates.index(max(rates))
    assert max(rates) == 1.0 and min(rates) > 0
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
