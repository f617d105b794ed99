"""Mixture-of-Skills against the numbers that its paper's figures and simulations of its rule give."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.mixing import build_mixing_algorithm
from orchestrator.mixing.base import Domain
from orchestrator.mixing.mixture_of_skills import MixtureOfSkillsConfig
from workers.contracts import DomainFeedback

NAMES = ("math", "medicine", "general", "nlp")
SIZES = {"math": 26_200, "medicine": 5_200, "general": 9_300, "nlp": 62_600}
PLATEAU = (0.80, 0.72, 0.86, 0.82)  # fitted to the paper's curve of CosSim+EMA
RATIOS = (0.52, 0.43, 0.59, 0.14)  # the paper's Table 6, Llama-3-8B


def mos(**settings: Any) -> Any:
    domains = [Domain(name, size, 10 * size) for name, size in SIZES.items()]
    return build_mixing_algorithm({"type": "mixture_of_skills", **settings}, domains)


def feedback(algorithm: Any, values: tuple[float, ...], step: int = 100) -> DomainFeedback:
    signals = {signal: dict(zip(NAMES, values, strict=True)) for signal in algorithm.required_signals}
    ones = dict.fromkeys(NAMES, 1)
    return DomainFeedback(
        run_id="r", attempt=1, step=step, weights_version=0, loss_sum_nats=ones, num_tokens=ones, signals=signals
    )


def update(algorithm: Any, values: tuple[float, ...], times: int = 1) -> list[float]:
    for _ in range(times):
        shares = algorithm.observe(feedback(algorithm, values))
    return [shares[name] for name in NAMES]


def largest_gap(shares: list[float]) -> float:
    return math.log(max(shares) / min(shares))


@pytest.mark.parametrize(
    ("tau", "expected"),
    [
        (None, (0.25, 0.25, 0.25, 0.25)),
        (1, (0.254, 0.050, 0.090, 0.606)),
        (10, (0.260, 0.221, 0.235, 0.284)),
    ],
)
@pytest.mark.parametrize("scorer", ["logits", "perceptron"])
def test_the_prior(tau: float | None, expected: tuple[float, ...], scorer: str) -> None:
    algorithm = mos(tau=tau, scorer=scorer)
    assert list(algorithm.initial_weights().values()) == pytest.approx(expected, abs=6e-4)
    probabilities = [algorithm.metrics()[f"probability/{name}"] for name in NAMES]
    assert probabilities == pytest.approx(list(algorithm.initial_weights().values()), abs=1e-12)


@pytest.mark.parametrize("values", [PLATEAU, RATIOS, (1.0, 0.5, 0.5, 0.01), (5.0, 1e-9, 0.0, 1.0)])
def test_a_first_update_opens_a_gap_of_at_most_004(values: tuple[float, ...]) -> None:
    gap = largest_gap(update(mos(ema=False), values))
    assert 0.03 < gap <= 0.0401


def test_the_time_course_of_constant_rewards() -> None:
    algorithm = mos(ema=False)
    assert update(algorithm, PLATEAU, 5) == pytest.approx((0.25, 0.23, 0.264, 0.256), abs=6e-4)
    assert update(algorithm, PLATEAU, 5) == pytest.approx((0.25, 0.225, 0.269, 0.256), abs=6e-4)


def test_mospec_with_perplexity_doubles_the_target() -> None:
    algorithm = mos(reward="perplexity", target="math", ema=False)
    assert algorithm.required_signals == ("perplexity_ratio",)
    assert update(algorithm, RATIOS) == pytest.approx((0.255, 0.245, 0.255, 0.245), abs=6e-4)
    assert algorithm.metrics()["reward/math"] == pytest.approx(1.04)
    assert algorithm.metrics()["reward/nlp"] == pytest.approx(0.14)


def test_doubling_comes_before_the_smoothing() -> None:
    algorithm = mos(reward="perplexity", target="math")
    update(algorithm, RATIOS)
    assert algorithm.metrics()["smoothed_reward/math"] == pytest.approx(0.9 * 1.04 + 0.1)


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({}, (0.309, 0.256, 0.351, 0.083)),
        ({"target": "math"}, (0.47, 0.20, 0.27, 0.06)),
    ],
)
def test_the_limit_is_proportional_to_the_rewards(settings: dict[str, Any], limit: tuple[float, ...]) -> None:
    algorithm = mos(reward="perplexity", ema=False, scorer_learning_rate=1e-2, **settings)
    assert update(algorithm, RATIOS, 10) == pytest.approx(limit, abs=6e-3)


def test_constant_ratios_end_where_the_simulation_does() -> None:
    """48 updates of the plain Diff rule: the paper's figure has 49 points, every 100 steps."""
    assert update(mos(reward="perplexity", ema=False), RATIOS, 48) == pytest.approx(
        (0.309, 0.256, 0.348, 0.088), abs=6e-4
    )


@pytest.mark.parametrize("tau", [1, 10, None])
def test_equal_embeddings_lead_to_uniform_whatever_the_prior(tau: float | None) -> None:
    algorithm = mos(tau=tau, scorer_learning_rate=1e-2)
    assert update(algorithm, (1.0, 1.0, 1.0, 1.0), 12) == pytest.approx([0.25] * 4, abs=2e-3)


@pytest.mark.parametrize(("start", "before"), [("one", 1.0), ("first_reward", 0.5)])
def test_beta_weighs_the_new_reward(start: str, before: float) -> None:
    algorithm = mos(ema_start=start)
    update(algorithm, (0.5, 0.5, 0.5, 0.5))
    first = 0.9 * 0.5 + 0.1 * before
    assert algorithm.metrics()["smoothed_reward/nlp"] == pytest.approx(first)
    update(algorithm, (0.7, 0.5, 0.5, 0.5))
    assert algorithm.metrics()["smoothed_reward/math"] == pytest.approx(0.9 * 0.7 + 0.1 * first)  # recursive
    assert algorithm.metrics()["reward/math"] == 0.7


def test_without_ema_the_reward_counts_as_it_is() -> None:
    algorithm = mos(ema=False)
    update(algorithm, (0.5, 0.6, 0.7, 0.8))
    assert algorithm.metrics()["smoothed_reward/medicine"] == 0.6


def test_the_base_models_evaluation_moves_nothing() -> None:
    algorithm, other = mos(), mos()
    assert algorithm.observe(feedback(algorithm, (9.0, 0.1, 0.1, 0.1), step=0)) is None
    assert algorithm.metrics()["reward/math"] == 9.0
    assert update(algorithm, PLATEAU) == update(other, PLATEAU)


def test_a_negative_similarity_counts_as_none() -> None:
    algorithm, other = mos(ema=False), mos(ema=False)
    assert update(algorithm, (0.5, -0.4, 0.5, 0.5), 3) == update(other, (0.5, 0.0, 0.5, 0.5), 3)


@pytest.mark.parametrize(
    ("settings", "signal"),
    [
        ({}, "hidden_similarity"),
        ({"target": "nlp"}, "hidden_similarity:nlp"),
        ({"reward": "perplexity"}, "perplexity_ratio"),
        ({"reward": "perplexity", "span": "sequence", "target": "nlp"}, "perplexity_ratio:sequence"),
    ],
)
def test_it_says_which_signal_it_needs(settings: dict[str, Any], signal: str) -> None:
    from workers.signals import build_signal

    assert mos(**settings).required_signals == (signal,)
    build_signal(signal, NAMES)


def test_the_defaults_are_the_specified_ones() -> None:
    config = MixtureOfSkillsConfig()
    assert (config.inner_steps, config.scorer_learning_rate, config.beta, config.tau) == (200, 1e-4, 0.9, None)
    assert (config.scorer, config.gradient, config.span, config.ema) == ("logits", "unweighted", "response", True)


def test_the_policy_gradient_is_another_rule() -> None:
    settings = {"ema": False, "scorer_learning_rate": 1e-2}
    assert update(mos(gradient="policy", **settings), PLATEAU, 20)[2] > 0.9
    assert update(mos(**settings), PLATEAU, 20)[2] < 0.28


def test_a_target_that_is_no_domain_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'law' is not a trained domain; choose from \['math'"):
        mos(target="law")


@pytest.mark.parametrize(
    "settings", [{"beta": 0}, {"beta": 1.1}, {"tau": 0.5}, {"inner_steps": 0}, {"tau": math.inf}, {"reward": "both"}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        mos(**settings)
