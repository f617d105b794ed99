"""The scorer against the fixed point of its rule, and the perceptron's gradient against differences."""

from functools import partial

import numpy as np
import pytest

from orchestrator.mixing.mixture_of_skills import (
    LogitScorer,
    PerceptronScorer,
    Scorer,
    policy_gradient,
    softmax,
    unweighted_gradient,
)

PRIOR = np.array([0.5, 0.3, 0.15, 0.05])
REWARDS = np.array([0.8, 0.72, 0.86, 0.2])

SCORERS = {"logits": LogitScorer, "perceptron": PerceptronScorer}
every_scorer = pytest.mark.parametrize("scorer", SCORERS.values(), ids=SCORERS)


@every_scorer
def test_it_begins_at_the_prior(scorer: type[LogitScorer] | type[PerceptronScorer]) -> None:
    np.testing.assert_allclose(scorer(PRIOR).probabilities(), PRIOR, atol=1e-14)
    np.testing.assert_allclose(scorer(np.array([1.0])).probabilities(), [1.0])


@every_scorer
def test_it_moves_to_probabilities(scorer: type[LogitScorer] | type[PerceptronScorer]) -> None:
    moved = scorer(PRIOR)
    moved.ascend(partial(unweighted_gradient, REWARDS), 20, 1e-2)
    moved.move_to(np.array([0.1, 0.6, 0.3, 0.0]))
    np.testing.assert_allclose(moved.probabilities(), [0.1, 0.6, 0.3, 0.0], atol=2e-6)
    moved.ascend(partial(unweighted_gradient, REWARDS), 20, 1e-2)
    assert np.isfinite(moved.probabilities()).all()


@every_scorer
def test_the_fixed_point_is_proportional_to_the_rewards(scorer: type[LogitScorer] | type[PerceptronScorer]) -> None:
    at_limit = scorer(REWARDS / REWARDS.sum())
    at_limit.ascend(partial(unweighted_gradient, REWARDS), 50, 1e-4)
    np.testing.assert_allclose(at_limit.probabilities(), REWARDS / REWARDS.sum(), atol=1e-5)
    from_prior = scorer(PRIOR)
    from_prior.ascend(partial(unweighted_gradient, REWARDS), 4000, 1e-3)
    np.testing.assert_allclose(from_prior.probabilities(), REWARDS / REWARDS.sum(), atol=2e-3)


def test_a_common_factor_of_the_rewards_changes_nothing() -> None:
    scorers = [LogitScorer(PRIOR) for _ in range(2)]
    for scorer, factor in zip(scorers, (1.0, 1000.0), strict=True):
        scorer.ascend(partial(unweighted_gradient, REWARDS * factor), 200, 1e-4)
    np.testing.assert_allclose(scorers[0].logits(), scorers[1].logits(), atol=1e-7)


def test_the_policy_gradient_collapses() -> None:
    scorer = LogitScorer(np.full(4, 0.25))
    scorer.ascend(partial(policy_gradient, REWARDS), 20_000, 1e-3)
    assert scorer.probabilities().argmax() == 2 and scorer.probabilities().max() > 0.99


def test_it_is_the_gradient_of_the_expected_reward() -> None:
    logits, step = np.log(PRIOR), 1e-6
    for k in range(4):
        moved = logits + step * (np.arange(4) == k)
        slope = (softmax(moved) @ REWARDS - softmax(logits) @ REWARDS) / step
        assert policy_gradient(REWARDS, PRIOR)[k] == pytest.approx(slope, abs=1e-6)


def test_the_perceptron_pulls_gradients_back_to_its_parameters() -> None:
    scorer, direction, step = PerceptronScorer(PRIOR), np.array([0.3, -1.0, 0.5, 2.0]), 1e-6
    gradient = scorer._pull_back(direction)
    before, at = scorer.logits() @ direction, scorer.parameters_P
    for index in range(0, at.size, 7):
        scorer.parameters_P = at + step * (np.arange(at.size) == index)
        assert gradient[index] == pytest.approx((scorer.logits() @ direction - before) / step, abs=1e-5)


def test_adam_is_torchs() -> None:
    import torch

    scorer: Scorer = LogitScorer(PRIOR)
    logits = torch.nn.Parameter(torch.log(torch.tensor(PRIOR)))
    optimizer = torch.optim.Adam([logits], lr=1e-3)
    for rewards in (REWARDS, REWARDS[::-1].copy()):  # moments are kept from one update to the next
        scorer.ascend(partial(unweighted_gradient, rewards), 50, 1e-3)
        for _ in range(50):
            optimizer.zero_grad()
            (-(torch.tensor(rewards) * torch.log_softmax(logits, 0)).sum()).backward()
            optimizer.step()
    np.testing.assert_allclose(scorer.logits(), logits.detach().numpy(), atol=1e-9)


@every_scorer
def test_a_state_of_another_shape_is_refused(scorer: type[LogitScorer] | type[PerceptronScorer]) -> None:
    with pytest.raises(ValueError, match="parts of"):
        scorer(PRIOR).load_state(scorer(PRIOR[:3]).state())
