"""What counts as a difference between two evaluations."""

import math
from pathlib import Path

import numpy as np
import pytest

from orchestrator.runs.verdict import is_beyond_noise
from workers.contracts import Change, DomainFeedback
from workers.validation.example_losses import EvaluationHistory
from workers.validation.loss_statistics import ExampleLosses


def measured(loss: float, step: int = 0, error: float | None = None, paired: float | None = None) -> DomainFeedback:
    return DomainFeedback(
        run_id="r",
        attempt=1,
        step=step,
        weights_version=0,
        loss_sum_nats={"a": loss * 1000},
        num_tokens={"a": 1000},
        standard_error_nats={} if error is None else {"a": error},
        change_from_first={} if paired is None else {"a": Change(nats=0.0, standard_error=paired)},
    )


@pytest.mark.parametrize(
    ("first", "second", "counts"),
    [
        (2.0, 2.0, False),
        (2.0, 2.0004, False),
        (2.0, 2.001, True),
        (2.0, 1.999, True),
        (2.0, math.nan, False),
        (math.inf, 2.0, False),
    ],
)
def test_without_standard_errors_whatever_shows_counts(first: float, second: float, counts: bool) -> None:
    assert is_beyond_noise("a", measured(first), measured(second)) is counts
    assert is_beyond_noise("b", measured(first), measured(second)) is False  # not measured


def test_a_change_from_the_start_counts_beyond_two_paired_errors() -> None:
    start = measured(2.0, error=0.5)
    for paired, counts in ((0.04, True), (0.06, False)):
        assert is_beyond_noise("a", start, measured(2.1, 50, error=0.5, paired=paired)) is counts


def test_without_pairs_the_errors_of_both_count() -> None:
    for error, counts in ((0.03, True), (0.04, False)):  # 0.1 against 2 x sqrt(2) x error
        assert is_beyond_noise("a", measured(2.0, 20, error), measured(2.1, 50, error, paired=0.001)) is counts


def test_two_later_evaluations_are_paired_by_their_examples(tmp_path: Path) -> None:
    history = EvaluationHistory(tmp_path, 0)
    rng = np.random.default_rng(3)
    level_E, size_E = rng.normal(2.0, 1.0, 40), np.full(40, 10)
    for step, rise in ((20, 0.0), (50, 0.1)):
        total_E = 10 * (level_E + rise * rng.uniform(0.9, 1.1, 40))
        history.write(step, {"a": ExampleLosses(np.arange(40, dtype=np.uint64), total_E, size_E, 40)})
    earlier, later = measured(2.0, 20, error=0.16), measured(2.1, 50, error=0.16)
    assert not is_beyond_noise("a", earlier, later)
    assert is_beyond_noise("a", earlier, later, tmp_path)
    (tmp_path / "evaluations" / "00000020.npz").write_bytes(b"torn")
    assert not is_beyond_noise("a", earlier, later, tmp_path)
