"""Perplexity ratio: how little the model has improved on a domain (Mixture-of-Skills' difficulty, arXiv 2406.08811).

    R(i) = mean_j PPL(y_j | x_j; now) / PPL(y_j | x_j; base model)      PPL = exp(mean nats over the tokens of y_j)

1 for the base model, and below 1 as training continues; a ratio, because perplexity itself makes anything with a long
tail look hard. `perplexity_ratio:sequence` takes all tokens of the example, as the authors' released code does, instead
of the response alone. Both sides always use the same span and the same computation.

A single example that the model has unlearned can outweigh all others, which is the price of a mean of ratios.
"""

from collections.abc import Sequence
from typing import get_args

import numpy as np

from workers.signals.examples import Array, MeasuredExamples, Span


class PerplexityRatio:
    """Mean over examples of perplexity now over perplexity of the base model."""

    def __init__(self, domains: Sequence[str], parameter: str | None) -> None:
        spans = {str(span): span for span in get_args(Span)}
        if (span := parameter or "response") not in spans:
            raise ValueError(f"signal perplexity_ratio:{span}: the spans are {', '.join(spans)}")
        self.base_span: Span = spans[span]

    def sums(self, examples: MeasuredExamples) -> Array:
        """Sum of the ratios and number of examples with a token of the span, (D, 2)."""
        rise_E = examples.nats_sum_E[self.base_span] - examples.base_nats_sum_E[self.base_span]
        num_targets_E = examples.num_targets_E[self.base_span]
        with np.errstate(over="ignore"):  # the controller handles infinite ratios
            ratio_E = np.exp(rise_E / np.maximum(num_targets_E, 1))
        return examples.sum_by_domain(ratio_E[:, None], num_targets_E > 0)

    def values(self, sums: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):  # NaN for a domain without examples
            return sums[:, 0] / sums[:, 1]
