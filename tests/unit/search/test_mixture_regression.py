"""The regression of losses on mixes, where the truth is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.searches.regmix import describe, predict_best_mix

Array = NDArray[np.float64]
BEST = np.array([0.5, 0.3, 0.2])


def bowl(shares_ND: Array) -> Array:
    """Losses of three domains; their mean is lowest at BEST."""
    distance_N = ((shares_ND - BEST) ** 2).sum(axis=1)
    return 2.0 + distance_N[:, None] * np.array([1.0, 2.0, 3.0])


def mean(losses_ND: Array) -> Array:
    return losses_ND.mean(axis=1)


def mixes(number: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).dirichlet(np.ones(3), number)


def test_an_optimum_inside_the_simplex_is_found_from_few_runs() -> None:
    shares = mixes(24)
    noise = np.random.default_rng(1).normal(0, 0.003, (24, 3))
    prediction = predict_best_mix(shares, bowl(shares) + noise, mean, 1.0, seed=0)
    assert prediction.regression == "quadratic"
    assert prediction.shares_D == pytest.approx(BEST, abs=0.05) and prediction.shares_D.sum() == pytest.approx(1.0)
    assert prediction.score == pytest.approx(2.0, abs=0.02)
    assert prediction.rank_correlation > 0.95
    assert prediction.errors["quadratic"] < prediction.errors["linear"]


def test_a_loss_that_falls_with_one_share_wants_much_of_it() -> None:
    shares = mixes(16)
    losses = 3.0 - shares @ np.array([[1.0, 0.0, 0.0], [0.2, 0.0, 0.0], [0.1, 0.0, 0.0]])
    prediction = predict_best_mix(shares, losses, lambda losses_ND: losses_ND[:, 0], 1.0, seed=0)
    assert prediction.errors[prediction.regression] < 1e-3
    assert prediction.shares_D[0] > 0.95


def test_steps_are_learnt_by_trees() -> None:
    shares = mixes(400)
    losses = np.where(shares > 0.4, 1.0, 2.0)
    assert predict_best_mix(shares, losses, mean, 1.0, seed=0).regression == "boosted trees"


def test_too_few_runs_are_refused() -> None:
    shares = mixes(4)
    with pytest.raises(ValueError, match="4 finished runs; a regression takes at least 5"):
        predict_best_mix(shares, bowl(shares), mean, 1.0, seed=0)


def test_what_was_learnt_is_told_in_words() -> None:
    shares = mixes(12)
    lines = describe(predict_best_mix(shares, bowl(shares), mean, 1.0, seed=0), ("math", "code", "law"))
    assert lines[0].startswith("Predicted best mix: math ") and "predicted metric 2.0" in lines[0]
    assert "quadratic" in lines[1] and "linear 0." in lines[1]
