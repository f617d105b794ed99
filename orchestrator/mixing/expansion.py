"""Domain expansion of VersaTune (arXiv 2411.11266): raise one domain's share as long as it gains more than the others
lose. Pure functions.

    phi_j = max((l_j(t) - l_j(t-1)) / l_j(t-1), 0)                  forgetting degree, against the previous evaluation
    raise P_e by delta where  mean_(j != e) phi_j < epsilon * gamma_e

Stated in the paper: phi. The condition and the raise are a reconstruction; delta, epsilon and the cap are ours.
"""

import math
from collections.abc import Mapping

from orchestrator.mixing.base import Shares, raise_to_floor

_LARGEST_DEGREE = 1e9  # for a loss that rises from 0, whose degree would be infinite


def forgetting_degree(loss: float, previous: float) -> float:
    """phi: the loss's relative rise since the previous evaluation, at least 0."""
    if loss <= previous:
        return 0.0
    return min((loss - previous) / previous, _LARGEST_DEGREE) if previous > 0 else _LARGEST_DEGREE


def is_raise_due(target: str, phi: Mapping[str, float], gamma: Mapping[str, float], epsilon: float) -> bool:
    """Whether the others' mean forgetting is strictly less than epsilon times the target's learnable potential."""
    others = [degree for name, degree in phi.items() if name != target]
    return bool(others) and math.fsum(others) / len(others) < epsilon * gamma[target]


def raise_share(shares: Shares, target: str, delta: float, floor: float) -> Shares:
    """The target's share raised by delta, up to what the others' floors leave; they give up in proportion."""
    others = {name: share for name, share in shares.items() if name != target}
    raised = min(shares[target] + delta, 1.0 - floor * len(others))
    rest, given_up = 1.0 - raised, 1.0 - shares[target]
    if given_up <= 0.0 or rest <= 0.0:
        return {name: float(name == target) for name in shares}
    scaled = raise_to_floor({name: share / given_up for name, share in others.items()}, floor / rest)
    return {name: raised if name == target else scaled[name] * rest for name in shares}
