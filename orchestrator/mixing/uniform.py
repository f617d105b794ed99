"""Uniform: every domain has the same share, 1 / k. VersaTune's first baseline."""

from typing import Literal

from orchestrator.mixing.base import ConstantMixing, MixingConfig, Shares, initial_shares


class UniformConfig(MixingConfig):
    """The same share for every domain."""

    type: Literal["uniform"] = "uniform"
    """1 / k for each of k domains."""


class Uniform(ConstantMixing[UniformConfig]):
    def initial_weights(self) -> Shares:
        return initial_shares("uniform", self.domains, self.config.unit)
