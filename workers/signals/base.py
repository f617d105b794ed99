"""The interface of a signal."""

from typing import Protocol

from workers.signals.examples import Array, MeasuredExamples, Span


class Signal(Protocol):
    """One signal for the D trained domains, in their order."""

    @property
    def base_span(self) -> Span | None:
        """Tokens whose loss under the base model it needs, if any."""

    def sums(self, examples: MeasuredExamples) -> Array:
        """What is summed over the ranks, (D, anything) in float64."""

    def values(self, sums: Array) -> Array:
        """The signal of each domain, (D,), from the sums over all ranks; NaN if undefined."""
