"""Hidden similarity: how similar the domains are to the model (Mixture-of-Skills' transferability, arXiv 2406.08811).

    e_j = mean over all tokens of example j of the last hidden state, after the final norm
    z_i = mean of e_j over the examples of domain i
    R(i) = 1/N sum_n cos(z_i, z_n), n = i included           or, for `hidden_similarity:m`,  R(i) = cos(z_i, z_m)

A domain in the middle of the others is near 1. Hidden states of one model have a large common component, so values are
close together; and every domain is similar to itself, which raises the mean if there are few domains.
"""

from collections.abc import Sequence

import numpy as np

from workers.signals.examples import Array, MeasuredExamples


class HiddenSimilarity:
    """Cosine of mean hidden states with all domains, or with the one named by the parameter."""

    base_span = None

    def __init__(self, domains: Sequence[str], parameter: str | None) -> None:
        if parameter is not None and parameter not in domains:
            raise ValueError(f"signal hidden_similarity:{parameter}: it is not one of the domains {list(domains)}")
        self.target = None if parameter is None else list(domains).index(parameter)

    def sums(self, examples: MeasuredExamples) -> Array:
        """Sum of e_j and number of examples, (D, H + 1)."""
        return examples.sum_by_domain(examples.mean_hidden_EH)

    def values(self, sums: Array) -> Array:
        """R, (D,)."""
        with np.errstate(divide="ignore", invalid="ignore"):  # NaN for a domain without examples
            z_DH = sums[:, :-1] / sums[:, -1:]
            unit_DH = z_DH / np.linalg.norm(z_DH, axis=1, keepdims=True)
        cosine_DD = np.clip(unit_DH @ unit_DH.T, -1.0, 1.0)
        cosine_DD[np.diag_indices_from(cosine_DD)] += 1.0 - np.diag(cosine_DD)  # exactly 1, or still NaN
        return cosine_DD.mean(axis=1) if self.target is None else cosine_DD[:, self.target]
