"""The best evaluation: step 0 is a candidate, NaN never is, and of equal ones the first stays."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest

from workers.contracts import DomainFeedback
from workers.validation.best import better, selection_loss, with_start

NAMES = ("a", "b")


def measured(step: int, a: float, b: float) -> DomainFeedback:
    return DomainFeedback(
        run_id="r",
        attempt=1,
        step=step,
        weights_version=0,
        loss_sum_nats={"a": a * 8, "b": b * 4},
        num_tokens={"a": 8, "b": 4},
    )


def best_of(criterion: str, *evaluations: DomainFeedback) -> Any:
    best = None
    for feedback in evaluations:
        best = better(best, feedback, criterion, NAMES)
    return best


@pytest.mark.parametrize(
    ("criterion", "step", "loss"), [("mean", 20, 2.0), ("worst", 0, 3.0), ("a", 20, 0.5), ("b", 0, 3.0)]
)
def test_the_lowest_wins_the_base_included(criterion: str, step: int, loss: float) -> None:
    best = best_of(criterion, measured(0, 2.0, 3.0), measured(10, 1.5, 3.5), measured(20, 0.5, 3.5))
    assert best == {"step": step, "criterion": criterion, "loss_nats": loss}


def test_of_equal_losses_the_first_is_the_best() -> None:
    assert best_of("mean", measured(0, 2.0, 2.0), measured(10, 1.0, 3.0))["step"] == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_never_the_best(bad: float) -> None:
    assert best_of("mean", measured(0, bad, 1.0), measured(10, 9.0, 9.0), measured(20, 1.0, bad))["step"] == 10
    assert best_of("worst", measured(0, 1.0, bad)) is None
    for losses in itertools.permutations([("a", 1.0), ("b", 2.0), ("c", math.nan)]):
        assert math.isnan(selection_loss("worst", dict(losses)))


OLD = {"step": 10, "criterion": "mean", "loss_nats": 2.5}


@pytest.mark.parametrize(
    ("state", "start", "step"),
    [
        (OLD, measured(0, 2.0, 2.0), 0),  # of a version that did not count the base
        (OLD, measured(0, 3.0, 3.0), 10),
        (OLD, measured(0, 2.5, 2.5), 0),
        (None, measured(0, 2.0, 2.0), 0),
        (OLD, None, 10),
        (OLD, measured(0, math.nan, 2.0), 10),
    ],
)
def test_a_checkpoints_best_is_weighed_against_the_base(
    tmp_path: Path, state: Any, start: DomainFeedback | None, step: int
) -> None:
    (tmp_path / "feedback").mkdir()
    if start is not None:
        (tmp_path / "feedback" / "00000000.json").write_text(start.model_dump_json())
    best = with_start(state, tmp_path, "mean", NAMES)
    assert best is not None and best["step"] == step


def test_without_a_criterion_or_anything_to_compare_a_state_stays_as_it_is(tmp_path: Path) -> None:
    assert with_start(None, tmp_path, "mean", NAMES) is None
    assert with_start(OLD, tmp_path, None, NAMES) is OLD
    (tmp_path / "feedback").mkdir()
    (tmp_path / "feedback" / "00000000.json").write_text("{torn")
    assert with_start(OLD, tmp_path, "mean", NAMES) == OLD
