"""Fixed: the shares are given and stay.

`shares: detected` is the "constant" form of VersaTune (arXiv 2411.11266): the base model's own distribution, kept.
"""

from typing import Literal

from orchestrator.mixing.base import (
    ConstantMixing,
    DistributionFile,
    GivenShares,
    MixingConfig,
    Shares,
    given_shares,
)


class FixedConfig(MixingConfig):
    """Given shares."""

    type: Literal["fixed"] = "fixed"
    """The shares below."""
    shares: Literal["detected"] | DistributionFile | GivenShares
    """Share of each domain, which sum to 1; or `detected`: the base model's own distribution; or the .json file that a
    detection wrote."""


class Fixed(ConstantMixing[FixedConfig]):
    """w_j as given."""

    def initial_weights(self) -> Shares:
        """The given shares."""
        return given_shares("mixing.shares", self.config.shares, self.names)
