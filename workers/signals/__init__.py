"""Feedback signals: what an evaluation measures on training examples of each domain, in addition to held-out losses.

A mixing algorithm names the signals that it uses; a name may have a parameter after a colon (`hidden_similarity:math`).
All signals of an evaluation share one draw of examples, one forward pass over each and one reduction over the ranks
(`meter.py`). A signal only defines the sums that it needs and its value given these sums.

To add one, write a file with a class like those here, and give it a line in the table (`table.py`). Neither the loop
nor the meter changes. A signal in a separate package is an entry point: docs/extending.md.

Their papers call them rewards. Limits: means over 64 examples are noisy, especially if few packed sequences contain all
64 (`evaluation.signal_examples` sets how many), and they come from training data, so a domain that is repeated often
looks easier than it is, which the held-out losses of the same evaluation show.
"""

from typing import TYPE_CHECKING

from workers.plugins import names_of_table
from workers.signals.examples import MeasuredExamples, Signal

if TYPE_CHECKING:
    from workers.signals.table import SIGNALS, build_signal

__all__ = ["SIGNALS", "MeasuredExamples", "Signal", "build_signal"]

__getattr__ = names_of_table("workers.signals.table", __all__)
