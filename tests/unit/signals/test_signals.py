"""What follows from the sums: similarities and ratios by domain."""

import math

import numpy as np
import pytest

from workers.signals import SIGNALS, MeasuredExamples, Signal, build_signal

DOMAINS = ("a", "b", "c")


def examples(
    domain_E: list[int],
    hidden_EH: list[list[float]] | None = None,
    now_E: list[float] | None = None,
    base_E: list[float] | None = None,
    num_targets_E: list[int] | None = None,
) -> MeasuredExamples:
    num = len(domain_E)
    return MeasuredExamples(
        num_domains=len(DOMAINS),
        domain_E=np.array(domain_E, dtype=np.int64),
        mean_hidden_EH=np.array(hidden_EH or [[1.0]] * num),
        nats_sum_E={"response": np.array(now_E or [1.0] * num)},
        base_nats_sum_E={"response": np.array(base_E or [1.0] * num)},
        num_targets_E={"response": np.array(num_targets_E or [1] * num)},
    )


def value(signal: Signal, *parts: MeasuredExamples) -> list[float]:
    """The signal from what several ranks measured."""
    return signal.values(np.sum([signal.sums(part) for part in parts], axis=0)).tolist()


def test_similarity_is_the_mean_cosine_to_all_domains_itself_included() -> None:
    measured = examples([0, 0, 1, 2], [[2.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 0.5]])
    diagonal = math.sqrt(0.5)
    expected = [(1 + 2 * diagonal) / 3, (1 + diagonal) / 3, (1 + diagonal) / 3]
    assert value(build_signal("hidden_similarity", DOMAINS), measured) == pytest.approx(expected)


def test_similarity_to_a_target() -> None:
    measured = examples([0, 1, 2], [[1.0, 0.1], [3.0, 4.0], [-1.0, 0.0]])
    similarity = value(build_signal("hidden_similarity:b", DOMAINS), measured)
    assert similarity[1] == 1.0
    assert similarity[2] == pytest.approx(-0.6)
    assert similarity[0] == pytest.approx((3.0 + 0.4) / (5.0 * math.hypot(1.0, 0.1)))


def test_equal_embeddings_are_wholly_similar() -> None:
    measured = examples([0, 1, 2], [[0.1, 0.7, -0.3]] * 3)
    for name in ("hidden_similarity", "hidden_similarity:c"):
        assert value(build_signal(name, DOMAINS), measured) == pytest.approx([1.0] * 3, abs=1e-12)


def test_the_mean_is_over_examples_and_sums_come_first() -> None:
    """Two ranks with 1 and 3 examples of a domain: not the mean of their means."""
    whole = examples([0, 0, 0, 0, 1, 2], [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    parts = (
        examples([0, 1], [[1.0, 0.0], [1.0, 0.0]]),
        examples([0, 0, 0, 2], [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]),
    )
    signal = build_signal("hidden_similarity:b", DOMAINS)
    assert value(signal, *parts) == pytest.approx(value(signal, whole))
    assert value(signal, whole)[0] == pytest.approx(0.25 / math.hypot(0.25, 0.75))


def test_the_ratio_of_the_untouched_model_is_exactly_one() -> None:
    nats = [3.3333333, 17.1, 0.123, 1e-9, 700.0]
    measured = examples([0, 0, 1, 1, 2], now_E=nats, base_E=list(nats), num_targets_E=[3, 7, 1, 9, 2])
    assert value(build_signal("perplexity_ratio", DOMAINS), measured) == [1.0, 1.0, 1.0]


def test_the_ratio_is_a_mean_of_ratios_of_perplexities_by_token() -> None:
    measured = examples(
        [0, 0, 1, 2], now_E=[2.0, 9.0, 1.0, 4.0], base_E=[4.0, 6.0, 1.0, 2.0], num_targets_E=[2, 3, 5, 4]
    )
    expected = [(math.exp(-1.0) + math.exp(1.0)) / 2, 1.0, math.exp(0.5)]
    assert value(build_signal("perplexity_ratio", DOMAINS), measured) == pytest.approx(expected)


def test_huge_losses_of_both_models_do_not_overflow() -> None:
    """exp(5000) is no number, exp(5000 - 5001) is one."""
    measured = examples([0, 1, 2], now_E=[5000.0, 1.0, 1.0], base_E=[5001.0, 1.0, 1.0])
    assert value(build_signal("perplexity_ratio", DOMAINS), measured)[0] == pytest.approx(math.exp(-1.0))


def test_what_cannot_be_told_is_not_finite_and_touches_no_other_domain() -> None:
    ratio = build_signal("perplexity_ratio", DOMAINS)
    of_none, broken = value(ratio, examples([0, 1])), value(ratio, examples([0, 1, 2], now_E=[1.0, math.nan, 1e6]))
    assert of_none[:2] == [1.0, 1.0] and math.isnan(of_none[2])
    assert broken[0] == 1.0 and math.isnan(broken[1]) and broken[2] == math.inf
    similarity = value(build_signal("hidden_similarity:a", DOMAINS), examples([0, 1], [[1.0, 0.0], [1.0, 1.0]]))
    assert similarity[:2] == pytest.approx([1.0, math.sqrt(0.5)]) and math.isnan(similarity[2])


def test_an_example_without_a_token_of_the_span_does_not_count() -> None:
    measured = examples(
        [0, 0, 1, 2], now_E=[2.0, 0.0, 1.0, 1.0], base_E=[1.0, 0.0, 1.0, 1.0], num_targets_E=[1, 0, 1, 1]
    )
    assert value(build_signal("perplexity_ratio", DOMAINS), measured)[0] == pytest.approx(math.e)


@pytest.mark.parametrize("name", SIGNALS)
def test_names_and_parameters_are_checked(name: str) -> None:
    build_signal(name, DOMAINS)
    with pytest.raises(ValueError, match=f"signal {name}:x"):
        build_signal(f"{name}:x", DOMAINS)
    with pytest.raises(ValueError, match=f"signal 'un{name}' is not known; known: hidden_similarity, perplexity_ratio"):
        build_signal(f"un{name}", DOMAINS)
