"""Which evaluation was the best so far. The model that training starts from (step 0) is a candidate like any other, so
that nothing worse than it is ever kept as the best."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from workers.contracts import DomainFeedback

Best = dict[str, Any]
"""step, criterion, loss_nats: as a checkpoint's state keeps it."""


def selection_loss(criterion: str, losses: dict[str, float]) -> float:
    """The number that the best model minimises: the `mean` or `worst` domain loss, or one domain's, in nats a token.

    Not finite where one of the losses that it is made of is not.
    """
    match criterion:
        case "mean":
            return sum(losses.values()) / len(losses)
        case "worst":
            return max(losses.values(), key=lambda loss: math.inf if math.isnan(loss) else loss)
        case domain:
            return losses[domain]


def better(best: Best | None, feedback: DomainFeedback, criterion: str, names: Sequence[str]) -> Best | None:
    """The better of the best so far and an evaluation; of two that are equal the earlier one."""
    loss = selection_loss(criterion, {name: feedback.loss_nats(name) for name in names})
    if not math.isfinite(loss) or (best and best["loss_nats"] <= loss):  # nothing is <= NaN
        return best
    return {"step": feedback.step, "criterion": criterion, "loss_nats": loss}


def with_start(best: Best | None, run_folder: Path, criterion: str | None, names: Sequence[str]) -> Best | None:
    """What a checkpoint's state says is the best, and step 0 as a candidate: older versions did not count it."""
    if criterion is None:
        return best
    try:
        start = DomainFeedback.model_validate_json((run_folder / "feedback" / "00000000.json").read_bytes())
    except (OSError, ValidationError):  # without it there is nothing to compare with
        return best
    found = better(None, start, criterion, names)
    return found if found and (best is None or found["loss_nats"] <= best["loss_nats"]) else best
