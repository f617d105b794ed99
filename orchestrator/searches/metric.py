"""The one number that a search minimises, from the held-out losses of the domains. Pure; NumPy only."""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

Array = NDArray[np.float64]
Metric = Literal["mean", "worst", "target"] | dict[str, Annotated[float, Field(ge=0)]]


def score_losses(metric: Metric, losses_ND: Array, domains: Sequence[str], target: str | None) -> Array:
    """The metric of each row, in nats per token, lower is better; NaN where a loss that it needs is NaN.

    Args:
        metric: see `SearchConfig.metric`.
        losses_ND: a column for each domain, in nats per token.
        domains: their names.
        target: the domain of the metric `target`.
    """
    if metric == "worst":
        return losses_ND.max(axis=1)
    weight_D = np.array([_weight(metric, name, len(domains), target) for name in domains])
    counts_D = weight_D > 0
    return losses_ND[:, counts_D] @ weight_D[counts_D]


def describe_metric(metric: Metric, target: str | None) -> str:
    if isinstance(metric, dict):
        return "loss " + " + ".join(f"{weight:g} {name}" for name, weight in metric.items() if weight)
    return f"loss of {target}" if metric == "target" else f"{metric} loss"


def _weight(metric: Metric, name: str, num_domains: int, target: str | None) -> float:
    if isinstance(metric, dict):
        return metric.get(name, 0.0)
    return float(name == target) if metric == "target" else 1.0 / num_domains
