"""Which evaluation was the best so far. The model that training starts from (step 0) is a candidate too, so that no
worse model is ever kept as the best."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workers.bounded import read_model
from workers.contracts import DomainFeedback
from workers.validation.domain_losses import mean_loss, worst_loss

Best = dict[str, Any]
"""step, criterion, loss_nats, as stored in a checkpoint's state."""


def selection_loss(criterion: str, losses: dict[str, float]) -> float:
    """What the best model minimises: the `mean` or `worst` domain loss, or one domain's, in nats per token.

    Not finite if one of the losses in it is not.
    """
    match criterion:
        case "mean":
            return mean_loss(losses.values())
        case "worst":
            return worst_loss(losses.values())
        case domain:
            return losses[domain]


def better(best: Best | None, feedback: DomainFeedback, criterion: str, names: Sequence[str]) -> Best | None:
    """The better of the best so far and an evaluation; the earlier one if they are equal."""
    loss = selection_loss(criterion, {name: feedback.loss_nats(name) for name in names})
    if not math.isfinite(loss) or (best and best["loss_nats"] <= loss):  # nothing is <= NaN
        return best
    return {"step": feedback.step, "criterion": criterion, "loss_nats": loss}


def with_start(best: Best | None, run_folder: Path, criterion: str | None, names: Sequence[str]) -> Best | None:
    """The best of a checkpoint's state and step 0, which older versions did not count."""
    if criterion is None:
        return best
    try:
        start = read_model(run_folder / "feedback" / "00000000.json", DomainFeedback)
    except (OSError, ValueError):  # nothing to compare with
        return best
    found = better(None, start, criterion, names)
    return found if found and (best is None or found["loss_nats"] <= best["loss_nats"]) else best
