"""Collectives: rank 0 acts for all ranks, all act and fail together, or all agree on a number."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

_Outcome = TypeVar("_Outcome")


def on_rank_zero(action: Callable[[], Any]) -> Any:
    """Run `action` on rank 0 and return its result (anything picklable) on all ranks; a collective.

    An error is raised on every rank: if only rank 0 raised it, the others would wait forever.
    """
    error: Exception | None = None
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = action()
        except Exception as caught:  # the other ranks must receive any error before it is raised
            error = caught
            outcome[1] = f"{type(caught).__name__}: {caught}"
    dist.broadcast_object_list(outcome, src=0)
    if error is not None:
        raise error
    if outcome[1] is not None:
        raise RuntimeError(f"rank 0 failed: {outcome[1]}")
    return outcome[0]


def on_every_rank(action: Callable[[], _Outcome]) -> _Outcome:
    """Run `action`, which makes no collective calls, on every rank; an error on any of them is raised on all."""
    error: Exception | None = None
    try:
        outcome = action()
    except Exception as caught:  # the other ranks must receive any error before it is raised
        error = caught
    errors: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for rank, message in enumerate(errors):
        if message is not None:
            raise RuntimeError(f"rank {rank} failed: {message}")
    return outcome


def sum_over_ranks(value: float, device: torch.device) -> float:
    """The sum over all ranks; a collective."""
    return _reduce(value, device, dist.ReduceOp.SUM)


def sum_losses_over_ranks(loss_sum_D: torch.Tensor, num_tokens_D: torch.Tensor) -> tuple[list[float], list[int]]:
    """The sums over all ranks of each domain's loss and of its tokens; a collective."""
    both = torch.stack([loss_sum_D, num_tokens_D.double()])  # counts are exact in float64 up to 2^53
    dist.all_reduce(both)
    loss_sums, counts = both.tolist()
    return loss_sums, [int(count) for count in counts]


def max_over_ranks(value: float, device: torch.device) -> float:
    """The maximum over all ranks; a collective."""
    return _reduce(value, device, dist.ReduceOp.MAX)


def _reduce(value: float, device: torch.device, operation: Any) -> float:
    reduced = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(reduced, op=operation)
    return float(reduced)
