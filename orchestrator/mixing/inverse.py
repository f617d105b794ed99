"""Inverse: domains with a large base share get a small one, w_j = (1 - P_j) / (k - 1).

VersaTune's second baseline (arXiv 2411.11266, experiments): the opposite of training in proportion to knowledge.
"""

from typing import Literal

from orchestrator.mixing.base import ConstantMixing, MixingConfig, Shares, initial_shares
from orchestrator.mixing.needs import Initial


class InverseConfig(MixingConfig):
    """The complement of a distribution."""

    type: Literal["inverse"] = "inverse"
    """(1 - P_j) / (k - 1)."""
    initial: Initial = "proportional"
    """The distribution P: `uniform`, `proportional`, `detected` (the base model's own, as in the paper), the .json file
    that `raymix detect` wrote, or a share for each domain."""


class Inverse(ConstantMixing[InverseConfig]):
    """w_j = (1 - P_j) / (k - 1); a single domain keeps everything."""

    def initial_weights(self) -> Shares:
        base = initial_shares(self.config.initial, self.domains, self.config.unit)
        others = len(base) - 1
        return {name: (1.0 - share) / others for name, share in base.items()} if others else base
