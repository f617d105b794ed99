"""What every entry of the table of mixing algorithms keeps, over random streams of losses."""

import json
import math
import random
from dataclasses import dataclass
from typing import Any

import pytest

from orchestrator.controller.core import ControllerCore
from orchestrator.mixing import MIXING_ALGORITHMS, MixingAlgorithm, build_mixing_algorithm
from workers.contracts import Change, DomainFeedback
from workers.signals import build_signal

NUM_STREAMS = 1000
NUM_FEEDBACKS = 8


@dataclass(frozen=True)
class Domain:
    """A domain of a given size."""

    name: str
    num_examples: int
    num_tokens: int


def random_config(kind: str, names: list[str], choice: random.Random) -> dict[str, Any]:
    """Some settings of this algorithm; a new entry of the table adds its own line where it has needs."""
    given = {name: choice.random() + 1e-3 for name in names}
    shares = {name: value / sum(given.values()) for name, value in given.items()}
    unit = choice.choice(["examples", "tokens"])
    needs: dict[str, dict[str, Any]] = {
        "fixed": {"shares": shares},
        "inverse": {"initial": choice.choice(["uniform", "proportional", shares])},
        "temperature": {"tau": choice.choice([1.0, 5.0, 1e6])},
        "target": {"target": choice.choice(names), "share": choice.choice([1e-6, 0.5, 1.0])},
        "versatune": {
            "initial": choice.choice(["uniform", "proportional", shares]),
            "reference": {name: choice.choice([0.0, 1e-9, 0.5, 3.0, 1e6]) for name in names},
            "sigma": choice.choice([1e-6, 0.5, 20.0, 1e4]),
            "update": choice.choice(["ratio", "exponential", "loss"]),
            "floor": choice.choice([0.0, 0.01, 0.999 / len(names)]),
        },
        "mixture_of_skills": {
            "reward": choice.choice(["similarity", "perplexity"]),
            "target": choice.choice([None, *names]),
            "span": choice.choice(["response", "sequence"]),
            "ema": choice.choice([True, False]),
            "ema_start": choice.choice(["one", "first_reward"]),
            "tau": choice.choice([None, 1.0, 10.0]),
            "scorer": choice.choice(["logits", "perceptron"]),
            "gradient": choice.choice(["unweighted", "policy"]),
            "inner_steps": choice.choice([1, 3, 20]),
            "scorer_learning_rate": choice.choice([1e-4, 1.0]),
        },
    }
    if kind == "versatune" and needs[kind]["update"] != "loss":
        needs[kind] |= {
            "target": choice.choice([None, *names]),
            "delta": choice.choice([1e-6, 0.1, 1.0]),
            "epsilon": choice.choice([1e-6, 1.0, 1e6]),
        }
    return {"type": kind, "unit": unit, **needs.get(kind, {})}


def random_domains(choice: random.Random) -> list[Domain]:
    count = choice.choice([1, 2, 5, 12])
    return [Domain(f"d{i}", choice.randint(1, 10**6), choice.randint(1, 10**9)) for i in range(count)]


def random_feedback(step: int, algorithm: MixingAlgorithm[Any], choice: random.Random) -> DomainFeedback:
    """Complete and finite, as the controller hands it in, and otherwise anything."""
    names = algorithm.names
    tokens = {name: choice.choice([1, 500, 10**9]) for name in names}
    losses = {name: choice.choice([0.0, 1e-12, choice.random() * 5, 50.0, 1e5, 1e300]) for name in names}
    signals = {
        signal: {name: choice.choice([-0.7, 0.0, 1e-12, choice.random(), 1.0, 1e300]) for name in names}
        for signal in algorithm.required_signals
    }
    return DomainFeedback(
        run_id="r",
        attempt=1,
        step=step,
        weights_version=0,
        loss_sum_nats=losses,
        num_tokens=tokens,
        signals=signals,
    )


def watch(algorithm: MixingAlgorithm[Any]) -> list[DomainFeedback]:
    """The list that everything which reaches the algorithm is appended to."""
    seen: list[DomainFeedback] = []
    observe = algorithm.observe

    def watched(feedback: DomainFeedback) -> dict[str, float] | None:
        seen.append(feedback)
        return observe(feedback)

    algorithm.observe = watched  # type: ignore[method-assign]
    return seen


def check_shares(shares: dict[str, float], algorithm: MixingAlgorithm[Any]) -> None:
    floor = getattr(algorithm.config, "floor", 0.0)
    assert list(shares) == algorithm.names
    assert all(math.isfinite(share) and share >= floor - 1e-12 for share in shares.values()), shares
    assert abs(math.fsum(shares.values()) - 1.0) < 1e-9


@pytest.mark.parametrize("kind", MIXING_ALGORITHMS)
def test_shares_are_shares_and_a_state_carries_everything(kind: str) -> None:
    for stream in range(NUM_STREAMS // len(MIXING_ALGORITHMS) + 1):
        choice = random.Random(f"{kind} {stream}")
        domains = random_domains(choice)
        names = [domain.name for domain in domains]
        config = random_config(kind, names, choice)
        algorithm = build_mixing_algorithm(config, domains)
        check_shares(algorithm.initial_weights(), algorithm)
        first_half, second_half = range(NUM_FEEDBACKS // 2), range(NUM_FEEDBACKS // 2, NUM_FEEDBACKS)
        for step in first_half:
            if (shares := algorithm.observe(random_feedback(step, algorithm, choice))) is not None:
                check_shares(shares, algorithm)
        text = json.dumps(algorithm.state_dict(), allow_nan=False)
        twin = build_mixing_algorithm(config, domains)
        twin.load_state_dict(json.loads(text))
        assert twin.metrics() == algorithm.metrics()
        for step in second_half:
            feedback = random_feedback(step, algorithm, choice)
            assert algorithm.observe(feedback) == twin.observe(feedback)
            assert algorithm.metrics() == twin.metrics()
            assert all(math.isfinite(value) for value in algorithm.metrics().values())
        assert json.dumps(algorithm.state_dict()) == json.dumps(twin.state_dict())


@pytest.mark.parametrize("kind", MIXING_ALGORITHMS)
def test_an_algorithm_goes_on_from_shares_that_somebody_else_decided(kind: str) -> None:
    for stream in range(NUM_STREAMS // len(MIXING_ALGORITHMS) // 4 + 1):
        choice = random.Random(f"adopt {kind} {stream}")
        domains = random_domains(choice)
        names = [domain.name for domain in domains]
        algorithm = build_mixing_algorithm(random_config(kind, names, choice), domains)
        for step in range(NUM_FEEDBACKS):
            parts = [choice.choice([0.0, 0.001, 0.3, 1.0]) for _ in names]
            parts[choice.randrange(len(parts))] = 1.0
            adopted = {name: part / math.fsum(parts) for name, part in zip(names, parts, strict=True)}
            algorithm.adopt(adopted)
            assert adopted == {name: part / math.fsum(parts) for name, part in zip(names, parts, strict=True)}
            if (shares := algorithm.observe(random_feedback(step, algorithm, choice))) is not None:
                check_shares(shares, algorithm)
        json.dumps(algorithm.state_dict(), allow_nan=False)


@pytest.mark.parametrize("kind", MIXING_ALGORITHMS)
def test_a_state_of_another_algorithm_or_other_domains_is_refused(kind: str) -> None:
    domains = [Domain("a", 10, 100), Domain("b", 20, 300)]
    algorithm = build_mixing_algorithm(random_config(kind, ["a", "b"], random.Random(1)), domains)
    state = algorithm.state_dict()
    with pytest.raises(ValueError, match="state has"):
        algorithm.load_state_dict({**state, "more": 1})
    for field, value in state.items():
        with pytest.raises(ValueError, match="state has"):
            algorithm.load_state_dict({key: other for key, other in state.items() if key != field})
        if isinstance(value, dict):
            with pytest.raises(ValueError, match="not domains of this run"):
                algorithm.load_state_dict({**state, field: {**value, "x": 0.0}})
            with pytest.raises(ValueError, match="no value for"):
                algorithm.load_state_dict({**state, field: {"a": 1.0}})


@pytest.mark.parametrize("kind", MIXING_ALGORITHMS)
def test_missing_and_non_finite_losses_never_reach_it(kind: str) -> None:
    """Through the controller's core it sees, for such a domain, the last good numbers."""
    for stream in range(40):
        choice = random.Random(stream)
        domains = random_domains(choice)
        names = [domain.name for domain in domains]
        algorithm = build_mixing_algorithm(random_config(kind, names, choice), domains)
        core = ControllerCore("r", algorithm)
        core.begin()
        seen = watch(algorithm)
        last: dict[str, tuple[float, int]] = {}
        for step in range(12):
            feedback = random_feedback(step, algorithm, choice)
            sums, tokens = dict(feedback.loss_sum_nats), dict(feedback.num_tokens)
            for name in names:
                fault = choice.choice(["none", "none", "nan", "inf", "no tokens", "gone"])
                if fault in ("nan", "inf"):
                    sums[name] = float(fault)
                elif fault == "no tokens":
                    tokens[name] = 0
                elif fault == "gone":
                    del sums[name], tokens[name]
                else:
                    last[name] = (sums[name], tokens[name])
            num_seen = len(seen)
            decision = core.observe(feedback.model_copy(update={"loss_sum_nats": sums, "num_tokens": tokens}))
            assert (len(seen) > num_seen) == (set(last) == set(names))
            if len(seen) > num_seen:
                assert {name: (seen[-1].loss_sum_nats[name], seen[-1].num_tokens[name]) for name in names} == last
            if decision.version is not None:
                check_shares(decision.version.shares, algorithm)


@pytest.mark.parametrize("kind", MIXING_ALGORITHMS)
def test_errors_of_losses_change_no_answer(kind: str) -> None:
    """They are there for methods to come; the published ones answer to the losses alone."""
    for stream in range(10):
        choice = random.Random(stream)
        domains = random_domains(choice)
        names = [domain.name for domain in domains]
        config = random_config(kind, names, choice)
        plain, told = (build_mixing_algorithm(config, domains) for _ in range(2))
        for step in range(6):
            feedback = random_feedback(step, plain, choice)
            changes = {name: Change(nats=choice.gauss(0, 1), standard_error=choice.random()) for name in names}
            errors = {
                "standard_error_nats": {name: choice.random() for name in names},
                "sampling_error_nats": {name: choice.random() for name in names},
                "change_from_first": changes,
                "change_from_previous": changes,
            }
            assert plain.observe(feedback) == told.observe(feedback.model_copy(update=errors))
            assert plain.state_dict() == told.state_dict() and plain.metrics() == told.metrics()


SIGNAL_ALGORITHMS = [{"type": "mixture_of_skills", "reward": reward} for reward in ("similarity", "perplexity")]


@pytest.mark.parametrize("kind", MIXING_ALGORITHMS)
def test_workers_can_measure_what_it_requires(kind: str) -> None:
    for seed in range(20):
        config = random_config(kind, ["a", "b"], random.Random(seed))
        algorithm = build_mixing_algorithm(config, [Domain("a", 10, 100), Domain("b", 20, 300)])
        assert algorithm.required_signals == algorithm.config.required_signals
        for signal in algorithm.required_signals:
            build_signal(signal, algorithm.names)
            with pytest.raises(ValueError, match=r"nobody: (it is not one of|the spans are)"):
                build_signal(f"{signal}:nobody", algorithm.names)


@pytest.mark.parametrize("config", SIGNAL_ALGORITHMS, ids=lambda config: config["reward"])
def test_missing_and_non_finite_signals_never_reach_it(config: dict[str, Any]) -> None:
    """Through the core it sees, for such a domain, the last good value, and nothing before there is one."""
    for stream in range(40):
        choice = random.Random(stream)
        domains = random_domains(choice)
        algorithm = build_mixing_algorithm({**config, "inner_steps": 1}, domains)
        (signal,) = algorithm.required_signals
        core = ControllerCore("r", algorithm)
        core.begin()
        seen = watch(algorithm)
        last: dict[str, float] = {}
        for step in range(12):
            feedback = random_feedback(step, algorithm, choice)
            values: dict[str, float] = dict(feedback.signals[signal])
            faults = {name: choice.choice(["none", "none", "nan", "inf", "-inf", "gone"]) for name in algorithm.names}
            for name, fault in faults.items():
                if fault == "none":
                    last[name] = values[name]
                elif fault == "gone":
                    del values[name]
                else:
                    values[name] = float(fault)
            signals = {signal: values} if values or choice.random() < 0.5 else {}
            num_seen = len(seen)
            decision = core.observe(feedback.model_copy(update={"signals": signals}))
            assert [event.kind for event in decision.events] == ["non_finite_signal"] * sum(
                fault != "none" for fault in faults.values()
            )
            assert (len(seen) > num_seen) == (set(last) == set(algorithm.names))
            if len(seen) > num_seen:
                assert seen[-1].signals == {signal: last}
            if decision.version is not None:
                check_shares(decision.version.shares, algorithm)
            assert all(math.isfinite(value) for value in algorithm.metrics().values())
