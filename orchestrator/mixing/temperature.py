"""Temperature: sizes flattened by an exponent, q_tau(j) = q(j)^(1/tau) / sum_i q(i)^(1/tau).

q is the proportional mixture; tau = 1 keeps it, a large tau approaches uniform. It is the prior of Mixture-of-Skills
(arXiv 2406.08811, section 3).
"""

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.mixing.base import ConstantMixing, MixingConfig, Shares, flatten_by_temperature, initial_shares


class TemperatureConfig(MixingConfig):
    """Shares by the domains' sizes, flattened by a temperature."""

    type: Literal["temperature"] = "temperature"
    """Proportional to size^(1/tau)."""
    tau: Annotated[float, Field(ge=1.0)] = 5.0
    """Temperature: 1 is proportional, large is uniform."""

    @property
    def by_size(self) -> str | None:
        return f"type: {self.type}"


class Temperature(ConstantMixing[TemperatureConfig]):
    def initial_weights(self) -> Shares:
        by_size = initial_shares("proportional", self.domains, self.config.unit)
        return flatten_by_temperature(by_size, self.config.tau)
