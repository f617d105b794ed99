"""The pure state machine: what is counted, what is refused, and which version holds for which step."""

import math
import random
from typing import Any

import pytest

from orchestrator.controller.core import ControllerCore, FencedOutError
from orchestrator.mixing import build_mixing_algorithm
from orchestrator.mixing.base import Domain
from workers.contracts import ERROR_FIELDS, DomainFeedback


def make_core(**settings: Any) -> ControllerCore:
    config = {"type": "versatune", "initial": "uniform", "reference": {"a": 0.5, "b": 0.1}} | settings
    core = ControllerCore("r", build_mixing_algorithm(config, [Domain("a", 1, 1), Domain("b", 1, 1)]))
    core.begin()
    return core


def feedback(step: int, attempt: int = 1, run_id: str = "r", **losses: float) -> DomainFeedback:
    losses = losses or {"a": 1.0 + step / 100, "b": 2.0 - step / 100}
    return DomainFeedback(
        run_id=run_id,
        attempt=attempt,
        step=step,
        weights_version=0,
        loss_sum_nats={name: loss * 10 for name, loss in losses.items()},
        num_tokens=dict.fromkeys(losses, 10),
    )


def test_a_new_version_holds_from_the_next_step() -> None:
    core = make_core()
    assert core.observe(feedback(0)).version == core.version_of(1)
    decision = core.observe(feedback(10))
    assert decision.version is not None and decision.version.effective_step == 11
    assert core.version_of(10).version == 1 and core.version_of(11).version == 2
    assert core.version_of(0) == core.version_of(1)


def test_an_algorithm_is_told_the_errors_of_what_was_measured_and_of_nothing_else() -> None:
    """A domain that keeps its last value has none of this evaluation's, nor has one that is not trained on."""
    core, seen = make_core(), []
    observe = core.algorithm.observe
    core.algorithm.observe = lambda told: (seen.append(told), observe(told))[1]  # type: ignore[method-assign]
    names = ("a", "b", "measured only")
    change = {"nats": -0.2, "standard_error": 0.01}
    errors = {
        "num_examples": dict.fromkeys(names, 30),
        "num_held_out": dict.fromkeys(names, 90),
        "standard_error_nats": dict.fromkeys(names, 0.1),
        "sampling_error_nats": dict.fromkeys(names, 0.08),
        "change_from_first": {"a": change, "measured only": change},
        "change_from_previous": dict.fromkeys(names, change),
    }
    assert set(errors) == set(ERROR_FIELDS)
    losses = {"a": 1.0, "b": 2.0, "measured only": 3.0}
    for step, told in ((0, losses), (5, losses | {"b": math.nan})):
        core.observe(DomainFeedback.model_validate(feedback(step, **told).model_dump() | errors))
    for field, values in errors.items():
        complete = DomainFeedback.model_validate(feedback(0, **losses).model_dump() | errors)
        expected = getattr(complete, field)
        assert getattr(seen[0], field) == {name: expected[name] for name in ("a", "b") if name in values}
        assert getattr(seen[1], field) == {"a": expected["a"]}
    assert seen[1].loss_nats("b") == 2.0


def test_a_version_that_was_pulled_is_never_replaced_for_that_step() -> None:
    for seed in range(200):
        choice, core, step = random.Random(seed), make_core(), 0
        pulled: dict[int, int] = {}
        for _ in range(40):
            if choice.random() < 0.7:
                at = choice.randint(max(step - 5, 1), step + 3)
                pulled.setdefault(at, core.pull(at).version)
            late = feedback(choice.randint(max(step - 10, 0), step))
            if core.accepts(late):
                core.observe(late)
            step += choice.randint(0, 3)
            assert {at: core.pull(at).version for at in pulled} == pulled
            steps = [version.effective_step for version in core.versions]
            assert steps == sorted(steps)


def test_feedback_counts_once_and_in_order() -> None:
    core = make_core()
    assert core.accepts(feedback(10))
    core.observe(feedback(10))
    assert not core.accepts(feedback(10))
    assert not core.accepts(feedback(10, attempt=2))  # a resumed group measures it again
    assert not core.accepts(feedback(5))  # delivered late: a replay, which goes by steps, could not tell
    assert core.accepts(feedback(11))


def test_lower_attempts_and_other_runs_are_refused() -> None:
    core = make_core()
    core.observe(feedback(5, attempt=3))
    with pytest.raises(FencedOutError, match="attempt 2, but attempt 3 is running"):
        core.accepts(feedback(10, attempt=2))
    with pytest.raises(FencedOutError, match="'other' sent to run 'r'"):
        core.accepts(feedback(10, attempt=3, run_id="other"))


@pytest.mark.parametrize("bad", [{"a": math.nan}, {"a": math.inf}, {"a": -math.inf}, {}])
def test_a_bad_loss_is_replaced_by_the_last_good_one_and_told(bad: dict[str, float]) -> None:
    core, other = make_core(), make_core()
    core.observe(feedback(0, a=1.5, b=1.0))
    other.observe(feedback(0, a=1.5, b=1.0))
    decision = core.observe(feedback(5, 1, "r", **bad, b=0.7))
    expected = other.observe(feedback(5, a=1.5, b=0.7))
    assert decision.version is not None and expected.version is not None
    assert decision.version.shares == expected.version.shares
    assert [event.kind for event in decision.events] == ["non_finite_loss"]
    assert "'a' at step 5" in decision.events[0].message and "last value" in decision.events[0].message


def skills_core() -> ControllerCore:
    config = {"type": "mixture_of_skills", "inner_steps": 5}
    core = ControllerCore("r", build_mixing_algorithm(config, [Domain("a", 1, 1), Domain("b", 1, 1)]))
    core.begin()
    return core


def with_signals(step: int, **values: float) -> DomainFeedback:
    return feedback(step).model_copy(update={"signals": {"hidden_similarity": values, "unwanted": {"a": math.nan}}})


@pytest.mark.parametrize("bad", [{"b": math.nan}, {"b": math.inf}, {"b": -math.inf}, {}])
def test_a_bad_signal_is_replaced_by_the_last_good_one_and_told(bad: dict[str, float]) -> None:
    core, other = skills_core(), skills_core()
    for each in (core, other):
        each.observe(with_signals(5, a=0.5, b=0.9))
    decision, expected = core.observe(with_signals(10, a=0.6, **bad)), other.observe(with_signals(10, a=0.6, b=0.9))
    assert decision.version is not None and expected.version is not None
    assert decision.version.shares == expected.version.shares
    (event,) = decision.events
    assert event.kind == "non_finite_signal" and "hidden_similarity of domain 'b' at step 10" in event.message


def test_the_weights_stay_while_a_domain_has_no_signal_yet() -> None:
    core = skills_core()
    decision = core.observe(with_signals(5, a=0.5))
    assert decision.version is None and "no update until it has one" in decision.events[0].message
    assert core.algorithm.metrics()["probability/a"] == 0.5
    twin = core.fork()
    assert twin.observe(with_signals(10, b=0.9)).version is not None
    assert core.observe(with_signals(10, b=math.nan)).version is None  # what the fork saw stays with it


def test_the_weights_stay_while_a_domain_has_no_value_yet() -> None:
    core = make_core()
    decision = core.observe(feedback(0, a=math.nan, b=1.0))
    assert decision.version is None and "the weights stay" in decision.events[0].message
    assert core.observe(feedback(5, a=1.0)).version is not None


def test_a_fork_leaves_the_core_as_it_was() -> None:
    core = make_core()
    core.observe(feedback(0))
    before = (list(core.versions), core.algorithm.state_dict(), dict(core._last))
    twin = core.fork()
    twin.observe(feedback(5, attempt=4))
    assert (core.versions, core.algorithm.state_dict(), core._last) == before
    assert core.accepts(feedback(5)) and core.attempt == 1
    assert core.observe(feedback(5)).version == twin.versions[-1]


def test_what_the_algorithm_cannot_do_is_told_once_before_any_training() -> None:
    core = make_core(reference={"a": 0.5, "b": 2.5})
    (event,) = core.observe(feedback(0)).events
    assert (event.step, event.kind) == (0, "mixing") and "b 2.500 (initial loss 2.000)" in event.message
    assert core.observe(feedback(10)).events == []
    assert make_core().observe(feedback(0)).events == []
