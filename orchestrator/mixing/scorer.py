"""The scorer of Mixture-of-Skills: logits of N domains and the Adam optimizer that moves them. Pure NumPy.

`LogitScorer` has N free logits, as in the authors' released code. `PerceptronScorer` is the two-layer network of the
paper (arXiv 2406.08811, section 3), which does not state width and activation: 16 tanh units here, and an input of
ones, since every domain is present. All parameters of a domain's output push its logit in the same direction, so it
moves about five times as fast as a free logit at the same learning rate.

Adam's moments are kept between updates, as in the released code. That code first fits the prior by gradient descent;
here it is exact from the start, through the logits themselves or the output's biases.

Shapes: N domains, P parameters, H hidden units.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from workers.data.permutation import derive_key, hash_uint64

Array = NDArray[np.float64]

_FIRST_DECAY, _SECOND_DECAY, _EPSILON = 0.9, 0.999, 1e-8
_NUM_HIDDEN = 16
_SMALLEST_PROBABILITY = 1e-6  # keeps a logit finite and lets its share grow again


class Scorer(ABC):
    """Parameters, Adam's moments, and the number of Adam steps so far."""

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
    """One free logit for each domain; the initial probabilities are `prior_N`, which is positive."""

    def __init__(self, prior_N: Array) -> None:
        super().__init__(np.log(prior_N))

    def logits(self) -> Array:
        return self.parameters_P

    def _add_to_logits(self, added_N: Array) -> None:
        self.parameters_P = self.parameters_P + added_N

    def _pull_back(self, gradient_N: Array) -> Array:
        return gradient_N


class PerceptronScorer(Scorer):
    """Two layers over an input of ones; the initial probabilities are `prior_N`, which is positive."""

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


SCORERS: dict[str, type[LogitScorer] | type[PerceptronScorer]] = {
    "logits": LogitScorer,
    "perceptron": PerceptronScorer,
}


def softmax(logits_N: Array) -> Array:
    raised_N = np.exp(logits_N - logits_N.max())
    return raised_N / raised_N.sum()


def unweighted_gradient(rewards_N: Array, probabilities_N: Array) -> Array:
    """sum_i R_i grad log p_i with respect to the logits: R - p * sum(R). Its fixed point is p = R / sum(R)."""
    return rewards_N - probabilities_N * rewards_N.sum()


def policy_gradient(rewards_N: Array, probabilities_N: Array) -> Array:
    """Gradient of E_p[R] with respect to the logits: p * (R - E_p[R]). It collapses to the best domain."""
    return probabilities_N * (rewards_N - probabilities_N @ rewards_N)
