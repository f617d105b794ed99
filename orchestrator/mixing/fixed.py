"""Fixed: given shares that never change.

`shares: detected` is the "constant" form of VersaTune (arXiv 2411.11266): the base model's own distribution.
"""

from typing import Literal

from orchestrator.mixing.base import ConstantMixing, MixingConfig, Shares, given_shares
from orchestrator.mixing.needs import BaseDistribution


class FixedConfig(MixingConfig):
    """Given shares."""

    type: Literal["fixed"] = "fixed"
    """The shares below."""
    shares: BaseDistribution
    """Share of each domain, summing to 1; or `detected`, the base model's own distribution; or the .json file that
    `raymix detect` wrote."""


class Fixed(ConstantMixing[FixedConfig]):
    def initial_weights(self) -> Shares:
        return given_shares(self.config.shares, self.domains)
