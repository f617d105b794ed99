"""What ranks do together: rank 0 acts for all, or all agree on a number."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


def on_rank_zero(action: Callable[[], Any]) -> Any:
    """Run `action` on rank 0 and hand its result (anything picklable) to all ranks; a collective.

    An error is raised on every rank: where only rank 0 raised, the others would wait for it for ever.
    """
    error: Exception | None = None
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = action()
        except Exception as caught:  # whatever it is, the other ranks have to hear of it before it is raised
            error = caught
            outcome[1] = f"{type(caught).__name__}: {caught}"
    dist.broadcast_object_list(outcome, src=0)
    if error is not None:
        raise error
    if outcome[1] is not None:
        raise RuntimeError(f"rank 0 failed: {outcome[1]}")
    return outcome[0]


def sum_over_ranks(value: float, device: torch.device) -> float:
    """The sum of what all ranks bring; a collective."""
    return _reduce(value, device, dist.ReduceOp.SUM)


def max_over_ranks(value: float, device: torch.device) -> float:
    """The largest of what all ranks bring; a collective."""
    return _reduce(value, device, dist.ReduceOp.MAX)


def _reduce(value: float, device: torch.device, operation: Any) -> float:
    reduced = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(reduced, op=operation)
    return float(reduced)
