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

Shapes: N domains, P parameters of the scorer, H hidden units.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
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
from workers.contracts import DomainFeedback
from workers.data.permutation import derive_key, hash_uint64

Array = NDArray[np.float64]

_LARGEST_REWARD = 1e6  # squares of the rewards of a diverged model would overflow in Adam
_FIRST_DECAY, _SECOND_DECAY, _EPSILON = 0.9, 0.999, 1e-8
_NUM_HIDDEN = 16
_SMALLEST_PROBABILITY = 1e-6  # keeps a logit finite and lets its share grow again


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
    def by_size(self) -> str | None:
        return None if self.tau is None else f"tau: {self.tau:g}"

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
        make_scorer = LogitScorer if config.scorer == "logits" else PerceptronScorer
        self._scorer = make_scorer(np.array([self.initial_weights()[name] for name in self.names]))

    @property
    def scorer_state(self) -> list[list[float]]:
        return self._scorer.state()

    @scorer_state.setter
    def scorer_state(self, state: list[list[float]]) -> None:
        self._scorer.load_state(state)

    def initial_weights(self) -> Shares:
        if self.config.tau is None:
            return initial_shares("uniform", self.domains, self.config.unit)
        by_size = initial_shares("proportional", self.domains, self.config.unit)
        return flatten_by_temperature(by_size, self.config.tau)

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
        gradient = partial(unweighted_gradient if self.config.gradient == "unweighted" else policy_gradient, rewards_N)
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


class Scorer(ABC):
    """Logits of N domains, and Adam's moments, which are kept between updates, as in the released code.

    That code first fits the prior by gradient descent; here it is exact from the start, through the logits themselves
    or the output's biases.
    """

    def __init__(self, parameters_P: Array) -> None:
        self.parameters_P = parameters_P
        self.first_moment_P = np.zeros_like(parameters_P)
        self.second_moment_P = np.zeros_like(parameters_P)
        self.num_steps = 0

    @abstractmethod
    def logits(self) -> Array:
        """Logit of each domain, shape (N,)."""

    @abstractmethod
    def _pull_back(self, gradient_N: Array) -> Array:
        """Gradient with respect to the parameters, (P,), from that with respect to the logits."""

    @abstractmethod
    def _add_to_logits(self, added_N: Array) -> None:
        """Change the parameters so that the logits increase by this."""

    def probabilities(self) -> Array:
        """Softmax of the logits, shape (N,)."""
        return softmax(self.logits())

    def move_to(self, probabilities_N: Array) -> None:
        """Take on these probabilities, shape (N,), none below _SMALLEST_PROBABILITY."""
        self._add_to_logits(np.log(np.maximum(probabilities_N, _SMALLEST_PROBABILITY)) - self.logits())

    def ascend(self, gradient_of: Callable[[Array], Array], num_steps: int, learning_rate: float) -> None:
        """Adam steps uphill; `gradient_of` maps probabilities, (N,), to the gradient by the logits, (N,)."""
        for _ in range(num_steps):
            gradient_P = self._pull_back(gradient_of(self.probabilities()))
            self.num_steps += 1
            self.first_moment_P = _FIRST_DECAY * self.first_moment_P + (1 - _FIRST_DECAY) * gradient_P
            self.second_moment_P = _SECOND_DECAY * self.second_moment_P + (1 - _SECOND_DECAY) * gradient_P**2
            first_P = self.first_moment_P / (1 - _FIRST_DECAY**self.num_steps)
            second_P = self.second_moment_P / (1 - _SECOND_DECAY**self.num_steps)
            self.parameters_P = self.parameters_P + learning_rate * first_P / (np.sqrt(second_P) + _EPSILON)

    def state(self) -> list[list[float]]:
        """Parameters, first and second moments, and [number of steps], in plain JSON types."""
        arrays = (self.parameters_P, self.first_moment_P, self.second_moment_P)
        return [*(array.tolist() for array in arrays), [float(self.num_steps)]]

    def load_state(self, state: Sequence[Sequence[float]]) -> None:
        """Continue from a state; ValueError if it belongs to another kind of scorer or another number of domains."""
        expected = [self.parameters_P.size] * 3 + [1]
        if (found := [len(part) for part in state]) != expected:
            raise ValueError(f"mixture_of_skills: scorer state has parts of {found} numbers, expected {expected}")
        parts = (np.asarray(part, dtype=np.float64) for part in state)
        self.parameters_P, self.first_moment_P, self.second_moment_P, (num_steps,) = parts
        self.num_steps = int(num_steps)


class LogitScorer(Scorer):
    """One free logit for each domain, as in the released code; the initial probabilities are `prior_N`, positive."""

    def __init__(self, prior_N: Array) -> None:
        super().__init__(np.log(prior_N))

    def logits(self) -> Array:
        return self.parameters_P

    def _add_to_logits(self, added_N: Array) -> None:
        self.parameters_P = self.parameters_P + added_N

    def _pull_back(self, gradient_N: Array) -> Array:
        return gradient_N


class PerceptronScorer(Scorer):
    """The paper's two-layer network (section 3); the initial probabilities are `prior_N`, which is positive.

    The paper does not state width and activation: 16 tanh units here, and an input of ones, since every domain is
    present. All parameters of a domain's output push its logit in the same direction, so it moves about five times as
    fast as a free logit at the same learning rate.
    """

    def __init__(self, prior_N: Array) -> None:
        n = self._num_domains = len(prior_N)
        self._ends = np.cumsum([_NUM_HIDDEN * n, _NUM_HIDDEN, n * _NUM_HIDDEN])
        bounds_P = np.repeat([n**-0.5, 0.0, _NUM_HIDDEN**-0.5, 0.0], [_NUM_HIDDEN * n, _NUM_HIDDEN, n * _NUM_HIDDEN, n])
        # Hashed, because NumPy's generators may change between releases.
        bits_P = hash_uint64(np.arange(len(bounds_P), dtype=np.uint64), derive_key("perceptron scorer"))
        super().__init__(bounds_P * (2.0 * bits_P / 2.0**64 - 1.0))
        self._add_to_logits(np.log(prior_N) - self.logits())

    def logits(self) -> Array:
        _, _, output_NH, output_bias_N = self._layers()
        return output_NH @ self._hidden() + output_bias_N

    def _add_to_logits(self, added_N: Array) -> None:
        self.parameters_P = np.concatenate(
            [self.parameters_P[: self._ends[-1]], self.parameters_P[self._ends[-1] :] + added_N]
        )

    def _layers(self) -> tuple[Array, Array, Array, Array]:
        input_weights, input_bias_H, output_weights, output_bias_N = np.split(self.parameters_P, self._ends)
        shape = (_NUM_HIDDEN, self._num_domains)
        return input_weights.reshape(shape), input_bias_H, output_weights.reshape(shape[::-1]), output_bias_N

    def _hidden(self) -> Array:
        input_HN, input_bias_H, _, _ = self._layers()
        return np.tanh(input_HN.sum(axis=1) + input_bias_H)

    def _pull_back(self, gradient_N: Array) -> Array:
        _, _, output_NH, _ = self._layers()
        hidden_H = self._hidden()
        inner_H = (gradient_N @ output_NH) * (1.0 - hidden_H**2)
        outer = np.outer(gradient_N, hidden_H).ravel()
        return np.concatenate([np.repeat(inner_H, self._num_domains), inner_H, outer, gradient_N])


def softmax(logits_N: Array) -> Array:
    raised_N = np.exp(logits_N - logits_N.max())
    return raised_N / raised_N.sum()


def unweighted_gradient(rewards_N: Array, probabilities_N: Array) -> Array:
    """sum_i R_i grad log p_i with respect to the logits: R - p * sum(R). Its fixed point is p = R / sum(R)."""
    return rewards_N - probabilities_N * rewards_N.sum()


def policy_gradient(rewards_N: Array, probabilities_N: Array) -> Array:
    """Gradient of E_p[R] with respect to the logits: p * (R - E_p[R]). It collapses to the best domain."""
    return probabilities_N * (rewards_N - probabilities_N @ rewards_N)
