"""Domain expansion against the worked numbers of its specification."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.mixing import build_mixing_algorithm
from orchestrator.mixing.base import Domain
from orchestrator.mixing.versatune import forgetting_degree, is_raise_due, raise_share
from tests.unit.mixing.test_versatune import feedback

P = {"a": 0.5, "b": 0.3, "c": 0.2}


def expanding(target: str = "a", **settings: Any) -> Any:
    reference = {"a": 0.8, "b": 0.6, "c": 1.0}
    config = {"type": "versatune", "initial": P, "reference": reference, "sigma": 0.5, "target": target} | settings
    return build_mixing_algorithm(config, [Domain(name, 10, 100) for name in config["initial"]])


def test_the_worked_example() -> None:
    """P' is (0.4955, 0.3243, 0.1802); nothing was forgotten yet, so a is raised by 0.1."""
    algorithm = expanding()
    shares = algorithm.observe(feedback(a=1.0, b=1.0, c=1.0))
    assert [round(share, 4) for share in shares.values()] == [0.5955, 0.26, 0.1445]
    assert shares["b"] / shares["c"] == pytest.approx(0.36 / 0.2)
    values = algorithm.metrics()
    assert values["raised/a"] == 1.0 and values["phi/b"] == 0.0 and values["gamma/a"] == pytest.approx(0.2)


def test_nothing_is_raised_where_the_others_forget_as_much_as_the_target_gains() -> None:
    """gamma_a is 0.2; b forgets 0.3 and c 0.1, a mean of 0.2: not strictly less."""
    losses = feedback(a=1.0, b=1.3, c=1.1)
    for epsilon, raised in ((1.0, 0.0), (1.01, 1.0), (0.5, 0.0), (2.0, 1.0)):
        algorithm, plain = expanding(epsilon=epsilon), expanding(target="a", epsilon=1e-12)
        for each in (algorithm, plain):
            each.observe(feedback(a=1.0, b=1.0, c=1.0))
        plain.shares = dict(algorithm.shares)
        shares = algorithm.observe(losses)
        assert algorithm.metrics()["phi/b"] == pytest.approx(0.3)
        assert algorithm.metrics()["raised/a"] == raised
        without_raise = plain.observe(losses)
        assert shares["a"] == pytest.approx(without_raise["a"] + 0.1 * raised)


def test_equality_is_no_reason_to_raise() -> None:
    assert not is_raise_due("a", {"a": 0.0, "b": 0.25}, {"a": 0.25, "b": 0.0}, 1.0)
    assert is_raise_due("a", {"a": 9.0, "b": 0.25}, {"a": 0.25, "b": 0.0}, 1.001)


def test_a_target_at_its_reference_is_not_raised() -> None:
    algorithm = expanding()
    algorithm.observe(feedback(a=0.8, b=1.0, c=1.0))
    assert algorithm.metrics()["raised/a"] == 0.0


def test_it_is_tested_again_at_the_next_evaluation() -> None:
    algorithm, raised = expanding(), []
    for b in (1.0, 2.0, 2.0, 1.5):
        algorithm.observe(feedback(a=1.0, b=b, c=1.0))
        raised.append(algorithm.metrics()["raised/a"])
    assert raised == [1.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("loss", "previous", "phi"), [(1.2, 1.0, 0.2), (1.0, 1.0, 0.0), (0.5, 1.0, 0.0), (0.0, 0.0, 0.0), (1.0, 0.0, 1e9)]
)
def test_the_forgetting_degree(loss: float, previous: float, phi: float) -> None:
    assert forgetting_degree(loss, previous) == pytest.approx(phi)


def test_forgetting_counts_from_the_evaluation_before_not_from_the_base_model() -> None:
    algorithm = expanding()
    for b in (1.0, 1.1, 1.21):
        algorithm.observe(feedback(a=1.0, b=b, c=1.0))
    assert algorithm.metrics()["phi/b"] == pytest.approx(0.1)


@pytest.mark.parametrize(("floor", "cap"), [(0.0, 1.0), (0.05, 0.9)])
def test_the_cap_is_what_the_floors_leave(floor: float, cap: float) -> None:
    algorithm = expanding(floor=floor, delta=0.3)
    for _ in range(5):
        shares = algorithm.observe(feedback(a=1.0, b=1.0, c=1.0))
        assert math.fsum(shares.values()) == pytest.approx(1.0, abs=1e-12)
        assert min(shares.values()) >= floor - 1e-12
    assert shares["a"] == pytest.approx(cap)


def test_floors_of_the_others_are_kept_while_they_give() -> None:
    raised = raise_share({"a": 0.4, "b": 0.5, "c": 0.1}, "a", 0.1, 0.1)
    assert raised == pytest.approx({"a": 0.5, "b": 0.4, "c": 0.1})


def test_a_domain_alone_has_nothing_to_raise() -> None:
    algorithm = expanding(initial={"a": 1.0}, reference={"a": 0.5})
    assert algorithm.observe(feedback(a=1.0)) == {"a": 1.0}
    assert algorithm.metrics()["raised/a"] == 0.0


def test_a_target_without_a_share_gets_one() -> None:
    shares = expanding(initial={"a": 0.0, "b": 0.5, "c": 0.5}).observe(feedback(a=1.0, b=1.0, c=1.0))
    assert shares["a"] == pytest.approx(0.1)


def test_without_a_target_the_rule_is_as_it_was() -> None:
    algorithm = expanding(target=None)
    shares = algorithm.observe(feedback(a=1.0, b=1.0, c=1.0))
    assert [round(share, 4) for share in shares.values()] == [0.4955, 0.3243, 0.1802]
    assert not any(key.startswith(("phi", "raised")) for key in algorithm.metrics())


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="'x' is not a trained domain"):
        expanding(target="x")
    with pytest.raises(ValidationError, match="update: loss` does not have"):
        expanding(update="loss")
    for settings in ({"delta": 0.0}, {"delta": 1.5}, {"epsilon": 0.0}):
        with pytest.raises(ValidationError):
            expanding(**settings)
