"""Mixing algorithms: how the shares of the domains follow from what was measured. Pure: no Ray, no torch, no clock.

To add one, write a file with a config class (its `type` names it) and a subclass of `MixingAlgorithm`, and put it in
the table and the union below. Nothing else changes: not the controller, not the loop, not the workers. An algorithm
that answers to more than losses names its signals in its config class (`required_signals`; workers/signals has them).
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from orchestrator.mixing.base import Domain, MixingAlgorithm, MixingConfig
from orchestrator.mixing.fixed import Fixed, FixedConfig
from orchestrator.mixing.inverse import Inverse, InverseConfig
from orchestrator.mixing.mixture_of_skills import MixtureOfSkills, MixtureOfSkillsConfig
from orchestrator.mixing.proportional import Proportional, ProportionalConfig
from orchestrator.mixing.target import Target, TargetConfig
from orchestrator.mixing.temperature import Temperature, TemperatureConfig
from orchestrator.mixing.uniform import Uniform, UniformConfig
from orchestrator.mixing.versatune import VersaTune, VersaTuneConfig

MIXING_ALGORITHMS: dict[str, type[MixingAlgorithm[Any]]] = {
    "uniform": Uniform,
    "proportional": Proportional,
    "temperature": Temperature,
    "inverse": Inverse,
    "fixed": Fixed,
    "target": Target,
    "versatune": VersaTune,
    "mixture_of_skills": MixtureOfSkills,
}

AnyMixingConfig = Annotated[
    UniformConfig
    | ProportionalConfig
    | TemperatureConfig
    | InverseConfig
    | FixedConfig
    | TargetConfig
    | VersaTuneConfig
    | MixtureOfSkillsConfig,
    Field(discriminator="type"),
]

_ADAPTER: TypeAdapter[MixingConfig] = TypeAdapter(AnyMixingConfig)


def build_mixing_algorithm(config: MixingConfig | Mapping[str, Any], domains: Sequence[Domain]) -> MixingAlgorithm[Any]:
    """The algorithm that `config` names, for these domains.

    Args:
        config: a validated config, or plain data such as {"type": "versatune", "sigma": 0.5, "reference": {...}}.
        domains: name, num_examples and num_tokens of every domain.

    Raises:
        ValueError: the config is not valid, or names other domains than `domains`.
    """
    checked = config if isinstance(config, MixingConfig) else _ADAPTER.validate_python(dict(config))
    return MIXING_ALGORITHMS[checked.type](checked, domains)


__all__ = [
    "MIXING_ALGORITHMS",
    "AnyMixingConfig",
    "Domain",
    "MixingAlgorithm",
    "MixingConfig",
    "build_mixing_algorithm",
]
