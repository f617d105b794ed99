"""The algorithms whose shares follow from sizes or settings alone."""

from typing import Any

import pytest

from orchestrator.mixing import build_mixing_algorithm
from orchestrator.mixing.base import Domain

DOMAINS = [Domain("a", 100, 9000), Domain("b", 300, 1000)]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"type": "uniform"}, (0.5, 0.5)),
        ({"type": "proportional"}, (0.25, 0.75)),
        ({"type": "proportional", "unit": "tokens"}, (0.9, 0.1)),
        ({"type": "temperature", "tau": 1}, (0.25, 0.75)),
        ({"type": "temperature", "tau": 2}, (1 / (1 + 3**0.5), 3**0.5 / (1 + 3**0.5))),
        ({"type": "inverse"}, (0.75, 0.25)),
        ({"type": "inverse", "initial": {"a": 1.0, "b": 0.0}}, (0.0, 1.0)),
        ({"type": "fixed", "shares": {"b": 0.1, "a": 0.9}}, (0.9, 0.1)),
        ({"type": "target", "target": "b"}, (0.0, 1.0)),
        ({"type": "target", "target": "b", "share": 0.6}, (0.4, 0.6)),
        ({"type": "fixed", "shares": {"a": 0.333333, "b": 0.6666668}}, (0.333333 / 0.9999998, 0.6666668 / 0.9999998)),
    ],
)
def test_shares(config: dict[str, Any], expected: tuple[float, float]) -> None:
    algorithm = build_mixing_algorithm(config, DOMAINS)
    assert algorithm.initial_weights() == pytest.approx(dict(zip("ab", expected, strict=True)), abs=1e-12)


def test_inverse_over_six_domains_is_the_papers_baseline() -> None:
    base = dict(zip("lmfsco", (0.05, 0.1, 0.05, 0.12, 0.42, 0.26), strict=True))
    algorithm = build_mixing_algorithm({"type": "inverse", "initial": base}, [Domain(name, 1, 1) for name in base])
    assert algorithm.initial_weights() == pytest.approx({name: (1 - share) / 5 for name, share in base.items()})
    assert build_mixing_algorithm({"type": "inverse"}, DOMAINS[:1]).initial_weights() == {"a": 1.0}


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"a": 1.0}, r"no value for \['b'\]"),
        ({"a": 0.5, "b": 0.6}, "sum to 1.1, not to 1; divide each by 1.1"),
        ({"a": 0.5, "b": 0.500002}, r"sum to 1\.000002, not to 1"),
        ({"a": 0.0, "b": 0.0}, "give at least one of them a share"),
        ({"a": -0.5, "b": 1.5}, "greater than or equal to 0"),
        ({"a": float("nan"), "b": 1.0}, "finite number"),
    ],
)
def test_given_shares_are_checked(shares: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_mixing_algorithm({"type": "fixed", "shares": shares}, DOMAINS).initial_weights()


def test_a_target_leaves_equal_parts_of_the_rest() -> None:
    domains = [Domain(name, size, 1) for name, size in (("a", 1), ("b", 10), ("c", 100), ("d", 1000))]
    algorithm = build_mixing_algorithm({"type": "target", "target": "c", "share": 0.4}, domains)
    assert algorithm.initial_weights() == pytest.approx({"a": 0.2, "b": 0.2, "c": 0.4, "d": 0.2})
    alone = build_mixing_algorithm({"type": "target", "target": "a", "share": 0.4}, DOMAINS[:1])
    assert alone.initial_weights() == {"a": 1.0}
    with pytest.raises(ValueError, match="'x' is not a trained domain"):
        build_mixing_algorithm({"type": "target", "target": "x"}, DOMAINS).initial_weights()


@pytest.mark.parametrize(
    "config",
    [
        {"type": "fixed", "shares": "detected"},
        {"type": "fixed", "shares": "found.json"},
        {"type": "inverse", "initial": "detected"},
        {"type": "versatune", "initial": "found.json", "reference": {"a": 1.0, "b": 1.0}},
    ],
)
def test_a_distribution_that_is_not_known_yet_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"shares by domain that (detected|.*found\.json) stands for are not known"):
        build_mixing_algorithm(config, DOMAINS).initial_weights()


@pytest.mark.parametrize("word", ["detcted", "found.yaml"])
def test_a_misspelt_word_is_not_taken_for_a_file(word: str) -> None:
    with pytest.raises(ValueError, match=f"'{word}' is neither a known value nor the name of a .json file"):
        build_mixing_algorithm({"type": "fixed", "shares": word}, DOMAINS)


def test_no_domain_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one domain"):
        build_mixing_algorithm({"type": "uniform"}, [])
