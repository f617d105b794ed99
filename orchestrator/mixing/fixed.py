"""Fixed: the shares are given and stay. With a detected distribution it is VersaTune's ablation "constant"."""

from typing import Literal

from orchestrator.mixing.base import ConstantMixing, GivenShares, MixingConfig, Shares, check_domains, normalise


class FixedConfig(MixingConfig):
    """Given shares."""

    type: Literal["fixed"] = "fixed"
    """The shares below."""
    shares: GivenShares
    """Share of each domain; they sum to 1."""


class Fixed(ConstantMixing[FixedConfig]):
    """w_j as given."""

    def initial_weights(self) -> Shares:
        """The given shares."""
        check_domains("mixing.shares", self.config.shares, self.names)
        return normalise(self.config.shares)
