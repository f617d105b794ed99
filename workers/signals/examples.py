"""The interface of a signal, and what it receives: measurements of one rank's examples."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Span = Literal["response", "sequence"]
"""Which of an example's tokens count: the assistant's, or all but the first, which nothing predicts."""


@dataclass(frozen=True)
class MeasuredExamples:
    """Measurements of one rank's E examples of D domains, with hidden size H."""

    num_domains: int
    domain_E: NDArray[np.int64]
    mean_hidden_EH: Array  # mean of the last hidden state over all tokens of the example
    nats_sum_E: dict[Span, Array]  # summed loss over the tokens of each requested span under the current model
    base_nats_sum_E: dict[Span, Array]  # the same under the base model
    num_targets_E: dict[Span, NDArray[np.int64]]  # tokens of the span

    def sum_by_domain(self, values_EW: Array, counts_E: NDArray[np.bool_] | None = None) -> Array:
        """Sums over the examples of each domain, and their number in the last column: (D, W + 1)."""
        counts_E = np.ones(len(self.domain_E), dtype=np.bool_) if counts_E is None else counts_E
        sums = np.zeros((self.num_domains, values_EW.shape[1] + 1))
        for domain in range(self.num_domains):
            chosen_E = (self.domain_E == domain) & counts_E
            sums[domain, :-1] = values_EW[chosen_E].sum(axis=0)
            sums[domain, -1] = chosen_E.sum()
        return sums


class Signal(Protocol):
    """One signal for the D trained domains, in their order."""

    @property
    def base_span(self) -> Span | None:
        """Tokens whose loss under the base model it needs, if any."""

    def sums(self, examples: MeasuredExamples) -> Array:
        """What is summed over the ranks, (D, anything) in float64."""

    def values(self, sums: Array) -> Array:
        """The signal of each domain, (D,), from the sums over all ranks; NaN if undefined."""
