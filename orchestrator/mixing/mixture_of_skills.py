"""Mixture-of-Skills: a scorer over the domains follows their rewards (arXiv 2406.08811, EMNLP 2024).

    psi <- psi + rate * sum_i R(i) * grad log p_psi(i)       inner_steps of Adam, rewards frozen, at each evaluation
    similarity  R(i) = 1/N sum_n cos(z_i, z_n)               z: mean hidden state, of tokens, then of examples
    perplexity  R(i) = mean_j PPL_now(x_j) / PPL_base(x_j)   high where there was little progress
    R <- beta * R + (1 - beta) * R_before                    with `ema`, recursive
    MoSpec      R(i) = cos(z_i, z_m);  perplexity: R(m) doubled, before smoothing           with `target` m

The paper's interval S (100 steps) is `evaluation.every`; the base model's evaluation at step 0 does not move the
scorer. In the paper a batch has one domain (`training.batches: one_domain`), in the released code it is mixed (the
default). The sum has no factor p_i, so it is not the policy gradient: it is cross-entropy to R / sum(R), its only fixed
point, and a common factor of all rewards has no effect.

From the paper, its code and figures: the rewards, the unweighted sum, free logits, 200 Adam steps at 1e-4 per update
(the paper's text says one), beta on the new reward. Ours: negative similarities count as 0, since a negative reward
has no fixed point.

Where it fails or saturates: an update changes the gap between logits by at most 0.04, so shares need tens of updates to
move (lower `evaluation.every`). Hidden states of one model point in similar directions, so similarity rewards are
nearly equal and the limit is nearly uniform. Similarity favours domains that resemble themselves, perplexity ratios
those that are hard to fit. The rewards, smoothed rewards and probabilities in the report show which case applies;
MoSpec spreads them most.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from orchestrator.mixing.base import (
    Domain,
    MixingAlgorithm,
    MixingConfig,
    Shares,
    flatten_by_temperature,
    initial_shares,
)
from orchestrator.mixing.needs import TargetDomain
from orchestrator.mixing.scorer import SCORERS, policy_gradient, unweighted_gradient
from workers.contracts import DomainFeedback

_GRADIENTS = {"unweighted": unweighted_gradient, "policy": policy_gradient}
_LARGEST_REWARD = 1e6  # squares of the rewards of a diverged model would overflow in Adam


class MixtureOfSkillsConfig(MixingConfig):
    """Shares from a scorer that learns from measurements on each domain's training examples."""

    type: Literal["mixture_of_skills"] = "mixture_of_skills"
    """Move the shares toward the domains' rewards."""
    reward: Literal["similarity", "perplexity"] = "similarity"
    """`similarity` (CosSim): how similar a domain's hidden states are to those of all domains. `perplexity` (Diff):
    perplexity relative to that of the base model."""
    target: TargetDomain | None = None
    """MoSpec: the domain to optimise for. Rewards are the similarity to it, or its perplexity ratio counts double."""
    span: Literal["response", "sequence"] = "response"
    """Tokens that the perplexity covers: the assistant's, or the whole example as in the released code."""
    ema: bool = True
    """Smooth the rewards over updates with an exponential moving average."""
    beta: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Weight of the NEW reward in the average."""
    ema_start: Literal["one", "first_reward"] = "one"
    """Start of the average: 1, as in the released code, or the first reward."""
    tau: Annotated[float, Field(ge=1)] | None = None
    """Temperature of the prior, the initial shares: 1 is proportional to the sizes; null is infinite, i.e. uniform."""
    scorer: Literal["logits", "perceptron"] = "logits"
    """One free logit for each domain, as in the released code, or the paper's two-layer perceptron."""
    inner_steps: Annotated[int, Field(ge=1)] = 200
    """Adam steps of the scorer per update: 200 in the released code, 1 in the paper's text."""
    scorer_learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Learning rate of these steps."""
    gradient: Literal["unweighted", "policy"] = "unweighted"
    """`unweighted` is the paper's sum, whose limit is R / sum(R); `policy` is the true gradient of the expected reward,
    for ablations only: it collapses to the single best domain."""

    @property
    def required_signals(self) -> tuple[str, ...]:
        if self.reward == "perplexity":
            return ("perplexity_ratio" if self.span == "response" else "perplexity_ratio:sequence",)
        return ("hidden_similarity" if self.target is None else f"hidden_similarity:{self.target}",)


class MixtureOfSkills(MixingAlgorithm[MixtureOfSkillsConfig]):
    """The scorer, and the smoothed rewards of the previous update."""

    state_fields = ("reward", "smoothed_reward", "scorer_state")

    def __init__(self, config: MixtureOfSkillsConfig, domains: Sequence[Domain]) -> None:
        super().__init__(config, domains)
        self.reward: dict[str, float] | None = None
        self.smoothed_reward: dict[str, float] | None = None
        self._scorer = SCORERS[config.scorer](np.array([self.initial_weights()[name] for name in self.names]))

    @property
    def scorer_state(self) -> list[list[float]]:
        return self._scorer.state()

    @scorer_state.setter
    def scorer_state(self, state: list[list[float]]) -> None:
        self._scorer.load_state(state)

    def initial_weights(self) -> Shares:
        by_size = initial_shares("proportional", self.domains, self.config.unit)
        return flatten_by_temperature(by_size, math.inf if self.config.tau is None else self.config.tau)

    def observe(self, feedback: DomainFeedback) -> Shares | None:
        """The scorer's probabilities after one update; the base model's evaluation causes none."""
        (signal,) = self.required_signals
        raw = {name: max(feedback.signals[signal][name], 0.0) for name in self.names}
        if self.config.reward == "perplexity" and self.config.target is not None:
            raw[self.config.target] *= 2.0
        self.reward = {name: min(value, _LARGEST_REWARD) for name, value in raw.items()}
        if feedback.step == 0:
            return None
        self.smoothed_reward = self._smooth(self.reward)
        rewards_N = np.array([self.smoothed_reward[name] for name in self.names])
        gradient = partial(_GRADIENTS[self.config.gradient], rewards_N)
        self._scorer.ascend(gradient, self.config.inner_steps, self.config.scorer_learning_rate)
        return self._by_domain(self._scorer.probabilities())

    def adopt(self, shares: Shares) -> None:
        """Move the scorer to these probabilities, keeping Adam's moments."""
        self._scorer.move_to(np.array([shares[name] for name in self.names]))

    def _smooth(self, reward: dict[str, float]) -> dict[str, float]:
        if not self.config.ema:
            return dict(reward)
        start = reward if self.config.ema_start == "first_reward" else dict.fromkeys(self.names, 1.0)
        before, beta = self.smoothed_reward or start, self.config.beta
        return {name: beta * value + (1.0 - beta) * before[name] for name, value in reward.items()}

    def _by_domain(self, values_N: np.ndarray) -> dict[str, float]:
        return dict(zip(self.names, values_N.tolist(), strict=True))

    def metrics(self) -> dict[str, float]:
        quantities = {
            "reward": self.reward or {},
            "smoothed_reward": self.smoothed_reward or {},
            "probability": self._by_domain(self._scorer.probabilities()),
            "logit": self._by_domain(self._scorer.logits()),
        }
        return {f"{what}/{name}": value for what, values in quantities.items() for name, value in values.items()}
