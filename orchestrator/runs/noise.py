"""The one place that decides whether a domain's held-out loss differs between two evaluations."""

import math
from pathlib import Path

from workers.contracts import DomainFeedback
from workers.validation.example_losses import read_losses
from workers.validation.loss_statistics import is_clear, paired_difference

SMALLEST_SHOWN_NATS = 0.0005
"""Losses are shown with three decimals: a smaller difference is not visible."""


def is_beyond_noise(domain: str, earlier: DomainFeedback, later: DomainFeedback, folder: Path | None = None) -> bool:
    """Whether the loss rose or fell by more than noise; False if either was not measured or is not finite.

    The losses by example in the run's `folder` allow a more precise answer. Without standard errors, as in files of
    older versions, every visible difference counts.
    """
    change = later.loss_nats(domain) - earlier.loss_nats(domain)
    if not math.isfinite(change) or abs(change) < SMALLEST_SHOWN_NATS:
        return False
    error = _error_of_change(domain, earlier, later, folder)
    return error is None or is_clear(change, error)


def _error_of_change(domain: str, earlier: DomainFeedback, later: DomainFeedback, folder: Path | None) -> float | None:
    """Paired over the examples if possible, else as if the two evaluations had different ones; None if unknown."""
    if earlier.step == 0 and domain in later.change_from_first:
        return later.change_from_first[domain].standard_error
    if folder is not None:
        try:
            ours, theirs = (read_losses(folder, feedback.step).get(domain) for feedback in (later, earlier))
        except (OSError, ValueError):  # not recorded, or damaged
            ours = theirs = None
        if ours is not None and theirs is not None and math.isfinite(error := paired_difference(ours, theirs)[1]):
            return error
    each = [feedback.standard_error_nats.get(domain) for feedback in (earlier, later)]
    return math.hypot(*(error for error in each if error is not None)) if None not in each else None
