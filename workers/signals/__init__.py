"""Feedback signals: what an evaluation measures on training examples of each domain, beside the held-out losses.

A mixing algorithm names the signals that it answers to; a name may carry a parameter behind a colon
(`hidden_similarity:math`). All signals of an evaluation share one draw of examples (`pool.py`), one forward pass of
each and one reduction over the ranks (`meter.py`). A signal only says which sums it needs and what follows from them.

To add one, write a file with a class like those below, and put it in the table. Neither the loop nor the meter changes.

They stand for what their papers call rewards. Where they fail: means of 64 examples are noisy, most of all where few
packed rows make up the 64 (`evaluation.signal_examples` sets how many), and they come from training data, so a domain
that is repeated often looks easier than it is; the held-out losses of the same evaluation tell.
"""

from collections.abc import Sequence
from typing import Protocol

from workers.signals.examples import Array, MeasuredExamples, Span
from workers.signals.hidden_similarity import HiddenSimilarity
from workers.signals.perplexity_ratio import PerplexityRatio


class Signal(Protocol):
    """One signal, for the trained domains in their order; D of them."""

    @property
    def base_span(self) -> Span | None:
        """Tokens whose loss under the base model it needs, if it needs any."""

    def sums(self, examples: MeasuredExamples) -> Array:
        """What has to be added up over the ranks, (D, anything) in float64."""

    def values(self, sums: Array) -> Array:
        """The signal of each domain, (D,), from the sums over all ranks; NaN where it cannot be told."""


SIGNALS: dict[str, type[HiddenSimilarity] | type[PerplexityRatio]] = {
    "hidden_similarity": HiddenSimilarity,
    "perplexity_ratio": PerplexityRatio,
}


def build_signal(name: str, domains: Sequence[str]) -> Signal:
    """The signal of this name, with its parameter, over these domains.

    Raises:
        ValueError: there is none of that name, or it does not take that parameter.
    """
    kind, _, parameter = name.partition(":")
    if kind not in SIGNALS:
        raise ValueError(f"signal {name!r} is not known; known: {', '.join(SIGNALS)}")
    return SIGNALS[kind](domains, parameter or None)


__all__ = ["SIGNALS", "MeasuredExamples", "Signal", "build_signal"]
