"""Feedback signals: what an evaluation measures on training examples of each domain, beside the held-out losses.

A mixing algorithm names the signals that it answers to; a name may carry a parameter behind a colon
(`hidden_similarity:math`). All signals of an evaluation share one draw of examples (`pool.py`), one forward pass of
each and one reduction over the ranks (`meter.py`). A signal only says which sums it needs and what follows from them.

To add one, write a file with a class like those here, and give it a line in the table (`table.py`). Neither the loop
nor the meter changes. A signal in a package of its own is an entry point: docs/extending.md.

They stand for what their papers call rewards. Where they fail: means of 64 examples are noisy, most of all where few
packed rows make up the 64 (`evaluation.signal_examples` sets how many), and they come from training data, so a domain
that is repeated often looks easier than it is; the held-out losses of the same evaluation tell.
"""

from typing import TYPE_CHECKING, Any

from workers.signals.base import Signal
from workers.signals.examples import MeasuredExamples

if TYPE_CHECKING:
    from workers.signals.table import SIGNALS, build_signal

__all__ = ["SIGNALS", "MeasuredExamples", "Signal", "build_signal"]


def __getattr__(name: str) -> Any:
    # Not imported above: the table imports plugins, whose modules import this package.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from workers.signals import table

    return getattr(table, name)
