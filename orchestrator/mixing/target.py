"""Target: one domain has a fixed share, the others share the rest equally.

The baselines of VersaTune's domain expansion (arXiv 2411.11266, experiments): share 1 is "100 % specific domain",
which forgets most elsewhere; a smaller share is "target plus uniform split of the rest", for which the paper does not
state the target's share.
"""

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.mixing.base import ConstantMixing, MixingConfig, Shares
from orchestrator.mixing.needs import TargetDomain


class TargetConfig(MixingConfig):
    """One domain gets a fixed share."""

    type: Literal["target"] = "target"
    """`share` for the target, (1 - share) / (k - 1) for each other domain."""
    target: TargetDomain
    """Name of the domain."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Its share; 1 trains on nothing else."""


class Target(ConstantMixing[TargetConfig]):
    """w_e = share, w_j = (1 - share) / (k - 1); a single domain gets everything."""

    def initial_weights(self) -> Shares:
        target = self.config.target
        others = len(self.names) - 1
        if not others:
            return {target: 1.0}
        rest = (1.0 - self.config.share) / others
        return {name: self.config.share if name == target else rest for name in self.names}
