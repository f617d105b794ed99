"""VersaTune, robustness form: domains with more left to learn get a larger share (arXiv 2411.11266).

    gamma_j = max((l_j - l_ref_j) / l_j, 0)                  learnable potential, in [0, 1)
    P_j    <- P_j * (1 + sigma * gamma_j) / sum_i ...        at every evaluation, the base model's included

l_j is the held-out loss of the current model, l_ref_j the best held-out loss of a model fine-tuned on that domain
alone. Equal potentials leave the shares as they are. That is also how the method saturates: a reference that has
memorised its domain (l_ref near 0) makes every gamma 1 and the rule does nothing, which is why references are
measured on held-out rows.

Certain of the paper: gamma. The update is a reconstruction; sigma is ours. Ours as well: the exponential form (equal
to first order) and the floor. `loss` is what the authors' released code does: P_j * exp(l_j), without references.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrator.mixing.base import (
    Initial,
    MixingAlgorithm,
    MixingConfig,
    Shares,
    check_domains,
    initial_shares,
    normalise,
    raise_to_floor,
)
from workers.contracts import DomainFeedback


class VersaTuneConfig(MixingConfig):
    """VersaTune's feedback loop over the domains' learnable potentials."""

    type: Literal["versatune"] = "versatune"
    """Raise the share of domains with more left to learn."""
    initial: Initial = "proportional"
    """Shares before any feedback: `uniform`, `proportional`, or a share for each domain."""
    reference: Literal["computed"] | Path | dict[str, Annotated[float, Field(ge=0)]] = "computed"
    """Reference loss of each domain in nats per token; or the JSON file that `raymix reference` wrote; or `computed`:
    fine-tune on each domain alone before the run, once."""
    sigma: Annotated[float, Field(gt=0)] = 0.5
    """Magnitude of an adjustment."""
    update: Literal["ratio", "exponential", "loss"] = "ratio"
    """`ratio` multiplies by 1 + sigma * gamma, `exponential` by exp(sigma * gamma), `loss` by exp(loss)."""
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Smallest share of a domain."""


class VersaTune(MixingAlgorithm[VersaTuneConfig]):
    """The loop's state is the shares; gamma is kept to be shown."""

    state_fields = ("shares", "gamma")

    def __init__(self, config: VersaTuneConfig, domains: Any) -> None:
        super().__init__(config, domains)
        if config.floor * len(self.names) > 1.0:
            raise ValueError(floor_fault(config.floor, len(self.names)))
        self.reference: dict[str, float] = {}
        if config.update != "loss":
            if not isinstance(config.reference, dict):
                raise ValueError(f"mixing.reference: {config.reference} has to be turned into losses by domain first")
            check_domains("mixing.reference", config.reference, self.names)
            self.reference = config.reference
        self.shares = raise_to_floor(initial_shares(config.initial, self.domains, config.unit), config.floor)
        self.gamma = dict.fromkeys(self.names, 0.0)

    def initial_weights(self) -> Shares:
        """P^(0), none below the floor."""
        return raise_to_floor(initial_shares(self.config.initial, self.domains, self.config.unit), self.config.floor)

    def observe(self, feedback: DomainFeedback) -> Shares:
        """P^(t) from P^(t-1) and the losses."""
        losses = {name: feedback.loss_nats(name) for name in self.names}
        sigma = self.config.sigma
        if self.config.update == "loss":
            factor = self._exponentials(losses)
        else:
            self.gamma = {name: learnable_potential(loss, self.reference[name]) for name, loss in losses.items()}
            if self.config.update == "ratio":
                factor = {name: 1.0 + sigma * gamma for name, gamma in self.gamma.items()}
            else:
                factor = self._exponentials({name: sigma * gamma for name, gamma in self.gamma.items()})
        raised = normalise({name: self.shares[name] * factor[name] for name in self.names})
        self.shares = raise_to_floor(raised, self.config.floor)
        return dict(self.shares)

    def _exponentials(self, values: dict[str, float]) -> dict[str, float]:
        """exp(value) up to a factor that cancels in the sum: it is 1 for the largest among those that have a share."""
        largest = max(value for name, value in values.items() if self.shares[name] > 0)
        return {name: math.exp(min(value - largest, 0.0)) for name, value in values.items()}

    def metrics(self) -> dict[str, float]:
        """gamma and reference loss of each domain."""
        if self.config.update == "loss":
            return {}
        references = {f"reference_nats/{name}": loss for name, loss in self.reference.items()}
        return {f"gamma/{name}": gamma for name, gamma in self.gamma.items()} | references


def floor_fault(floor: float, num_domains: int) -> str:
    """What to say of a floor that the domains cannot all have."""
    largest = math.floor(1e6 / num_domains) / 1e6  # rounded up it would be refused again
    return f"mixing.floor: {floor} for {num_domains} domains is more than 1 in all; use at most {largest:.6g}"


def learnable_potential(loss: float, reference: float) -> float:
    """gamma = max((l - l_ref) / l, 0), in [0, 1); a loss of 0 has nothing left to learn."""
    return max((loss - reference) / loss, 0.0) if loss > 0 else 0.0
