"""The regression of losses on mixes, where the truth is known, and the search that it is part of."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.searches import Proposal, SearchedRun, Trial
from orchestrator.searches.regmix import SHARES, RegMix, RegMixConfig, describe, predict_best_mix
from tests.unit.sweeps.tune.searches import DOMAINS

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


def trained(proposals: Sequence[Proposal]) -> list[Trial]:
    """What a run reaches whose domains have the losses of `bowl`; of the first one nothing is known."""
    done = []
    for place, proposal in enumerate(proposals):
        losses = dict(zip(DOMAINS, bowl(np.array([list(proposal.changes[SHARES].values())]))[0].tolist(), strict=True))
        mean_loss = sum(losses.values()) / 3
        done.append(Trial(proposal, str(place), "finished", losses, mean_loss))
    if len(done) > 1:
        done[0] = Trial(done[0].proposal, "0", "failed", {}, None)
    return done


def test_random_mixes_are_followed_by_the_predicted_one_and_that_is_the_end() -> None:
    search = RegMix(RegMixConfig(type="regmix", num_trials=24), SearchedRun(DOMAINS, DOMAINS, seed=3))
    first = search.next_trials([])
    assert len(first) == 24 and {each.kind for each in first} == {"trial"} and search.next_trials([]) == first
    done = trained(first)
    (predicted,) = search.next_trials(done)
    assert predicted.kind == "predicted"
    assert list(predicted.changes[SHARES].values()) == pytest.approx(BEST, abs=0.05)
    done += trained([predicted])
    assert search.next_trials(done) == []
    notes = search.conclude(done)
    assert (
        notes[0].startswith("Predicted best mix: math ") and notes[-1] == f"Trained, it reaches {done[-1].score:.3f}."
    )
