"""VersaTune against the worked numbers of its specification."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.mixing import build_mixing_algorithm
from orchestrator.mixing.base import Domain, raise_to_floor
from orchestrator.mixing.versatune import floor_fault, learnable_potential
from workers.contracts import DomainFeedback

NAMES = ("a", "b", "c")
P = {"a": 0.5, "b": 0.3, "c": 0.2}


def feedback(**losses: float) -> DomainFeedback:
    tokens = dict.fromkeys(losses, 10)
    sums = {name: loss * 10 for name, loss in losses.items()}
    return DomainFeedback(run_id="r", attempt=1, step=0, weights_version=0, loss_sum_nats=sums, num_tokens=tokens)


def versatune(**settings: Any) -> Any:
    reference = {"a": 0.8, "b": 0.6, "c": 1.0}
    config: dict[str, Any] = {"type": "versatune", "initial": P, "reference": reference, "sigma": 0.5} | settings
    return build_mixing_algorithm(config, [Domain(name, 10, 100) for name in config["initial"]])


def test_the_worked_example() -> None:
    """gamma (0.2, 0.4, 0): P' is (0.55, 0.36, 0.2)."""
    algorithm = versatune()
    assert algorithm.initial_weights() == pytest.approx(P)
    shares = algorithm.observe(feedback(a=1.0, b=1.0, c=1.0))
    assert algorithm.gamma == pytest.approx({"a": 0.2, "b": 0.4, "c": 0.0})
    assert shares == pytest.approx({"a": 0.55 / 1.11, "b": 0.36 / 1.11, "c": 0.2 / 1.11}, abs=1e-15)
    assert [round(share, 4) for share in shares.values()] == [0.4955, 0.3243, 0.1802]
    assert algorithm.metrics()["gamma/b"] == pytest.approx(0.4)
    assert algorithm.metrics()["reference_nats/b"] == 0.6


@pytest.mark.parametrize("update", ["ratio", "exponential"])
def test_equal_potentials_leave_the_shares(update: str) -> None:
    algorithm = versatune(update=update, reference={"a": 0.5, "b": 1.0, "c": 1.5})
    for _ in range(5):
        assert algorithm.observe(feedback(a=1.0, b=2.0, c=3.0)) == pytest.approx(P, abs=1e-14)


@pytest.mark.parametrize(("loss", "reference"), [(1.0, 1.0), (0.5, 1.0), (0.0, 0.0), (0.0, 1.0)])
def test_nothing_left_to_learn(loss: float, reference: float) -> None:
    assert learnable_potential(loss, reference) == 0.0


def test_exponential_equals_ratio_to_first_order() -> None:
    losses = feedback(a=1.0, b=1.0, c=1.0)
    for sigma in (1e-2, 1e-3, 1e-4):
        ratio, exponential = (versatune(update=u, sigma=sigma).observe(losses) for u in ("ratio", "exponential"))
        assert max(abs(ratio[name] - exponential[name]) for name in NAMES) < 0.1 * sigma**2
        assert max(abs(ratio[name] - P[name]) for name in NAMES) > 0.01 * sigma


def test_loss_is_what_the_released_code_does() -> None:
    losses = {"a": 0.7, "b": 1.9, "c": 1.1}
    algorithm = versatune(update="loss", reference="computed")
    raised = {name: P[name] * math.exp(losses[name]) for name in NAMES}
    total = sum(raised.values())
    assert algorithm.observe(feedback(**losses)) == pytest.approx({n: raised[n] / total for n in NAMES}, abs=1e-15)


def test_huge_losses_do_not_overflow_nor_divide_by_zero() -> None:
    algorithm = versatune(update="loss", initial={"a": 0.0, "b": 0.5, "c": 0.5})
    assert algorithm.observe(feedback(a=1e6, b=1e5, c=1.0)) == pytest.approx({"a": 0.0, "b": 1.0, "c": 0.0})
    algorithm = versatune(update="exponential", sigma=1e6)
    assert algorithm.observe(feedback(a=1.0, b=1.0, c=1.0)) == pytest.approx({"a": 0.0, "b": 1.0, "c": 0.0})


def test_updates_accumulate() -> None:
    algorithm, shares = versatune(), dict(P)
    for _ in range(3):
        shares = {name: shares[name] * (1 + 0.5 * gamma) for name, gamma in zip(NAMES, (0.2, 0.4, 0.0), strict=True)}
        answer = algorithm.observe(feedback(a=1.0, b=1.0, c=1.0))
    assert answer == pytest.approx({name: share / sum(shares.values()) for name, share in shares.items()})


def test_no_share_falls_below_the_floor() -> None:
    algorithm = versatune(floor=0.15, sigma=5.0)
    for _ in range(20):
        shares = algorithm.observe(feedback(a=1.0, b=1.0, c=1.0))
        assert min(shares.values()) >= 0.15 - 1e-12
        assert math.fsum(shares.values()) == pytest.approx(1.0, abs=1e-12)
    assert shares["c"] == pytest.approx(0.15)
    assert versatune(floor=0.25, initial={"a": 1.0, "b": 0.0, "c": 0.0}).initial_weights() == {
        "a": 0.5,
        "b": 0.25,
        "c": 0.25,
    }


def test_raising_some_can_push_others_below() -> None:
    raised = raise_to_floor({"a": 0.69, "b": 0.21, "c": 0.1, "d": 0.0}, 0.2)
    assert raised == pytest.approx({"a": 0.4, "b": 0.2, "c": 0.2, "d": 0.2})


@pytest.mark.parametrize("num_domains", [2, 3, 6, 7, 150])
def test_the_floor_that_an_error_names_is_accepted(num_domains: int) -> None:
    shares = {f"d{i}": 1 / num_domains for i in range(num_domains)}
    with pytest.raises(ValueError, match="use at most") as error:
        versatune(floor=0.9, initial=shares, reference=shares)
    largest = float(str(error.value).rsplit(" ", 1)[1])
    versatune(floor=largest, initial=shares, reference=shares)
    assert str(error.value) == floor_fault(0.9, num_domains)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference": "computed"}, "losses by domain that computed stands for"),
        ({"reference": {"a": 1.0, "b": 1.0}}, r"no value for \['c'\]"),
        ({"reference": {"a": 1.0, "b": 1.0, "c": 1.0, "x": 1.0}}, r"\['x'\] are not domains"),
    ],
)
def test_references_must_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        versatune(**settings)


@pytest.mark.parametrize("settings", [{"sigma": 0}, {"sigma": math.nan}, {"floor": 1.0}, {"reference": {"a": -1.0}}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        versatune(**settings)


def test_a_reference_that_is_not_below_the_first_loss_is_told_with_both_numbers() -> None:
    algorithm = versatune()  # references 0.8, 0.6, 1.0
    (told,) = algorithm.concerns(feedback(a=1.0, b=0.5, c=1.0))
    assert "b 0.600 (initial loss 0.500), c 1.000 (initial loss 1.000)" in told and "a 0.8" not in told
    assert (
        "gamma of these domains is 0" in told
        and "versatune (ratio)" in told
        and "only when those of other domains do" in told
    )
    losses = feedback(a=1.0, b=0.5, c=1.0)
    algorithm.observe(losses)
    assert {name for name, gamma in algorithm.gamma.items() if gamma == 0} == {"b", "c"}  # what it says is so


def test_where_no_reference_is_below_the_mixture_is_fixed() -> None:
    algorithm = versatune(update="exponential")
    losses = feedback(a=0.8, b=0.5, c=0.9)
    (told,) = algorithm.concerns(losses)
    assert "the shares stay unchanged" in told and "versatune (exponential)" in told
    assert algorithm.observe(losses) == pytest.approx(P)


def test_a_target_without_anything_to_learn_is_told_not_to_be_raised() -> None:
    algorithm = versatune(target="b")
    losses = feedback(a=1.0, b=0.5, c=2.0)
    (told,) = algorithm.concerns(losses)
    assert "the target b is not raised" in told
    algorithm.observe(losses)
    assert not algorithm.is_raised


def test_nothing_is_told_where_there_is_something_to_learn_or_no_reference() -> None:
    assert versatune().concerns(feedback(a=1.0, b=1.0, c=1.1)) == []
    assert versatune(update="loss").concerns(feedback(a=0.1, b=0.1, c=0.1)) == []
