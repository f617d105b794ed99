"""Proportional: shares follow the domains' sizes, as if all data were concatenated."""

from typing import Literal

from orchestrator.mixing.base import ConstantMixing, MixingConfig, Shares, initial_shares


class ProportionalConfig(MixingConfig):
    """Shares by the domains' sizes, in `unit`."""

    type: Literal["proportional"] = "proportional"
    """n_j / sum_i n_i."""

    @property
    def by_size(self) -> str | None:
        return f"type: {self.type}"


class Proportional(ConstantMixing[ProportionalConfig]):
    def initial_weights(self) -> Shares:
        return initial_shares("proportional", self.domains, self.config.unit)
