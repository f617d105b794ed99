"""What a person may ask, and the shares that follow."""

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.controller.operator import ControlRequest, apply_request, describe_change, fill_up, hold_pinned
from workers.contracts import DomainWeights

NAMES = ("a", "b", "c", "d")
NOW = {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}


def held(pinned: tuple[str, ...] = (), paused: bool = False, **shares: float) -> DomainWeights:
    return DomainWeights(
        version=3,
        effective_step=7,
        shares=shares or NOW,
        reason="operator",
        by="anna",
        why="a test",
        pinned=list(pinned),
        paused=paused,
    )


def ask(kind: Any, *domains: str, **shares: float) -> ControlRequest:
    return ControlRequest(kind=kind, domains=list(domains), shares=shares, by="anna")


def test_set_leaves_the_others_their_proportions() -> None:
    shares, pinned, paused = apply_request(ask("set", a=0.1), held())
    assert shares == pytest.approx({"a": 0.1, "b": 0.45, "c": 0.3, "d": 0.15}, abs=1e-15)
    assert (pinned, paused) == ([], False)
    shares, _, _ = apply_request(ask("set", a=0.0, b=0.0), held())
    assert shares == pytest.approx({"a": 0.0, "b": 0.0, "c": 2 / 3, "d": 1 / 3}, abs=1e-15)


def test_set_keeps_what_is_pinned_and_moves_the_pin_that_it_names() -> None:
    shares, pinned, _ = apply_request(ask("set", a=0.6), held(pinned=("a", "b")))
    assert shares == pytest.approx({"a": 0.6, "b": 0.3, "c": 0.1 * 2 / 3, "d": 0.1 / 3}, abs=1e-15)
    assert pinned == ["a", "b"]
    with pytest.raises(ValueError, match=r"sum to 1\.1, more than 1; lower or release some"):
        apply_request(ask("set", a=0.8), held(pinned=("b",)))


def test_pin_at_the_present_share_or_another() -> None:
    assert apply_request(ask("pin", "b"), held()) == (NOW, ["b"], False)
    shares, pinned, _ = apply_request(ask("pin", "b", d=0.4), held(pinned=("c",)))
    assert shares == pytest.approx({"a": 0.1, "b": 0.3, "c": 0.2, "d": 0.4}, abs=1e-15)
    assert pinned == ["b", "c", "d"]


def test_release_some_or_all_and_pause_change_no_share() -> None:
    assert apply_request(ask("release", "b"), held(pinned=("a", "b"))) == (NOW, ["a"], False)
    assert apply_request(ask("release"), held(pinned=("a", "b"))) == (NOW, [], False)
    assert apply_request(ask("pause"), held(pinned=("a",))) == (NOW, ["a"], True)
    assert apply_request(ask("resume"), held(paused=True)) == (NOW, [], False)
    assert apply_request(ask("pin", "a"), held(paused=True))[2]  # a pause outlives other changes


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match=r"\['x'\] are not trained domains of this run; choose from \['a'"):
        apply_request(ask("release", "x"), held())
    with pytest.raises(ValueError, match=r"sum to 0\.9, and no domain is left to take the rest"):
        apply_request(ask("set", a=0.3, b=0.3, c=0.2, d=0.1), held())
    for kind, domains, shares in (
        ("set", [], {}),
        ("set", ["a"], {}),
        ("pin", [], {}),
        ("pause", ["a"], {}),
        ("release", [], {"a": 0.3}),
        ("set", [], {"a": 1.5}),
        ("set", [], {"a": math.nan}),
    ):
        with pytest.raises(ValidationError):
            ControlRequest(kind=kind, domains=domains, shares=shares, by="anna")  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        ControlRequest(kind="pause", by="")


shares_of_all = st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(any)


@settings(deadline=None)
@given(shares_of_all, st.sets(st.sampled_from(NAMES)), shares_of_all)
def test_pinned_shares_stay_to_the_bit_and_all_sum_to_one(
    now: list[float], pinned: set[str], answer: list[float]
) -> None:
    shares = [dict(zip(NAMES, [value / math.fsum(v) for value in v], strict=True)) for v in (now, answer)]
    result = hold_pinned(shares[1], held(tuple(sorted(pinned)), **shares[0]))
    assert list(result) == list(NAMES) and math.fsum(result.values()) == pytest.approx(1.0, abs=1e-12)
    assert all(share >= 0 for share in result.values())
    free = [name for name in NAMES if name not in pinned]
    if free and math.fsum(shares[0][name] for name in pinned) < 1 - 1e-9:
        assert all(result[name] == shares[0][name] for name in pinned)
    for name, other in itertools.pairwise(free):  # proportions of the answer
        assert result[name] * shares[1][other] == pytest.approx(result[other] * shares[1][name], abs=1e-9)


def test_the_rest_is_spread_evenly_where_nobody_has_a_share() -> None:
    assert fill_up({"a": 0.4}, {"a": 1.0, "b": 0.0, "c": 0.0}) == pytest.approx({"a": 0.4, "b": 0.3, "c": 0.3})


def test_a_change_is_told_in_a_line() -> None:
    line = describe_change(held(pinned=("a", "d"), paused=True))
    assert line == "anna: a 0.4, b 0.3, c 0.2, d 0.1; a, d pinned; algorithm paused (a test)"
