"""The types that cross processes: what they accept, and that they survive their own JSON."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from workers.contracts import ERROR_FIELDS, DomainFeedback, DomainWeights


def weights(**changes: object) -> DomainWeights:
    record = {"version": 0, "effective_step": 1, "shares": {"a": 0.25, "b": 0.75}, "reason": "initial", "by": "x"}
    return DomainWeights.model_validate(record | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"shares": {"a": 0.5, "b": 0.6}},
        {"shares": {"a": -0.5, "b": 1.5}},
        {"shares": {"a": math.nan, "b": 1.0}},
        {"shares": {"a": math.inf}},
        {"shares": {}},
        {"effective_step": 0},
        {"version": -1},
        {"reason": "whim"},
        {"more": 1},
    ],
)
def test_weights_that_are_none_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        weights(**changes)


@given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=200))
def test_shares_survive_json_to_the_bit(values: list[float]) -> None:
    total = math.fsum(value / max(values) for value in values)
    shares = {f"d{i}": value / max(values) / total for i, value in enumerate(values)}
    record = weights(shares=shares)
    assert DomainWeights.model_validate_json(record.model_dump_json()) == record
    assert list(DomainWeights.model_validate_json(record.model_dump_json()).shares) == list(shares)


@given(st.dictionaries(st.sampled_from("abc"), st.floats()), st.dictionaries(st.sampled_from("abc"), st.integers(0)))
def test_feedback_survives_json_with_every_float(sums: dict[str, float], tokens: dict[str, int]) -> None:
    record = DomainFeedback(
        run_id="r", attempt=1, step=0, weights_version=0, loss_sum_nats=sums, num_tokens=tokens, signals={"s": sums}
    )
    again = DomainFeedback.model_validate_json(record.model_dump_json())
    assert repr(again) == repr(record)  # NaN is not equal to itself, but reads the same


@pytest.mark.parametrize(
    ("sums", "tokens", "mean"),
    [({"a": 6.0}, {"a": 4}, 1.5), ({"a": 6.0}, {"a": 0}, None), ({}, {"a": 4}, None), ({"a": 6.0}, {}, None)],
)
def test_a_mean_is_divided_last_and_is_nan_where_nothing_was_measured(
    sums: dict[str, float], tokens: dict[str, int], mean: float | None
) -> None:
    record = DomainFeedback(run_id="r", attempt=1, step=0, weights_version=0, loss_sum_nats=sums, num_tokens=tokens)
    assert record.loss_nats("a") == mean if mean is not None else math.isnan(record.loss_nats("a"))


def test_feedback_of_an_older_version_is_read() -> None:
    """As it was written before losses had errors."""
    text = (
        '{"run_id": "r", "attempt": 1, "step": 3, "weights_version": 0, "loss_sum_nats": {"a": 6.0}, "num_tokens": '
        '{"a": 4}, "signals": {}, "evaluation_seconds": 1.5, "signal_seconds": 0.0}'
    )
    record = DomainFeedback.model_validate_json(text)
    assert record.loss_nats("a") == 1.5
    assert not any(getattr(record, field) for field in ERROR_FIELDS)


def test_what_crosses_processes_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        weights().version = 3
