"""The table of mixing algorithms, the union of their settings, and how to build one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, Union

from pydantic import Field, TypeAdapter

from orchestrator.mixing.base import Domain, MixingAlgorithm, MixingConfig, ResolvedMixing, Shares, resolve_mixing
from orchestrator.mixing.fixed import Fixed
from orchestrator.mixing.inverse import Inverse
from orchestrator.mixing.mixture_of_skills import MixtureOfSkills
from orchestrator.mixing.needs import Measured
from orchestrator.mixing.proportional import Proportional
from orchestrator.mixing.target import Target
from orchestrator.mixing.temperature import Temperature
from orchestrator.mixing.uniform import Uniform
from orchestrator.mixing.versatune import VersaTune
from workers.plugins import class_fault, with_plugins

_OWN: dict[str, type[MixingAlgorithm[Any]]] = {
    "uniform": Uniform,
    "proportional": Proportional,
    "temperature": Temperature,
    "inverse": Inverse,
    "fixed": Fixed,
    "target": Target,
    "versatune": VersaTune,
    "mixture_of_skills": MixtureOfSkills,
}

MIXING_ALGORITHMS = with_plugins("raymix.mixing", _OWN, class_fault(MixingAlgorithm, MixingConfig))

if TYPE_CHECKING:
    AnyMixingConfig: TypeAlias = MixingConfig
else:
    AnyMixingConfig = Annotated[
        Union[tuple(algorithm.config_class for algorithm in MIXING_ALGORITHMS.values())],  # noqa: UP007
        Field(discriminator="type"),
    ]

_ADAPTER: TypeAdapter[MixingConfig] = TypeAdapter(AnyMixingConfig)


def build_mixing_algorithm(
    config: ResolvedMixing | MixingConfig | Mapping[str, Any], domains: Sequence[Domain]
) -> MixingAlgorithm[Any]:
    """The algorithm that `config` names, for these domains.

    The config is resolved, or complete as written: validated, or plain data such as {"type": "versatune", "sigma": 0.5,
    "reference": {...}}. ValueError if it is not valid or not complete, or if it is for other domains.
    """
    if isinstance(config, Mapping):
        config = _ADAPTER.validate_python(dict(config))
    if isinstance(config, MixingConfig):
        config = resolve_mixing(config, Measured(), [domain.name for domain in domains])
    return MIXING_ALGORITHMS[config.config.type](config.config, domains)


def initial_weights(config: MixingConfig, domains: Sequence[Domain]) -> Shares:
    """Shares before any feedback; ValueError if their base distribution is not known yet.

    They do not depend on reference losses, which may still be unknown.
    """
    source = config.needs.references
    any_losses = dict.fromkeys((domain.name for domain in domains), 0.0)
    measured = Measured(references={source: any_losses} if isinstance(source, str | Path) else {})
    resolved = resolve_mixing(config, measured, [domain.name for domain in domains])
    return build_mixing_algorithm(resolved, domains).initial_weights()
