"""What every signal is."""

from typing import Protocol

from workers.signals.examples import Array, MeasuredExamples, Span


class Signal(Protocol):
    """One signal, for the trained domains in their order; D of them."""

    @property
    def base_span(self) -> Span | None:
        """Tokens whose loss under the base model it needs, if it needs any."""

    def sums(self, examples: MeasuredExamples) -> Array:
        """What has to be added up over the ranks, (D, anything) in float64."""

    def values(self, sums: Array) -> Array:
        """The signal of each domain, (D,), from the sums over all ranks; NaN where it cannot be told."""
