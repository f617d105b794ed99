"""Mixing algorithms: how domain shares follow from measurements. Pure: no Ray, no torch, no clock.

To add one, write a file with a config class (its `type` is the name) and a subclass of `MixingAlgorithm`, and add a
line to the table. Nothing else changes: no other part knows the fields of an algorithm's settings. An algorithm that
uses more than losses lists its signals in its config class (`required_signals`; they are in workers/signals). An
algorithm in a separate package is an entry point: docs/extending.md.
"""

from typing import TYPE_CHECKING, Any

from orchestrator.mixing.base import Domain, MixingAlgorithm, MixingConfig
from orchestrator.mixing.needs import Measured, Needs
from orchestrator.mixing.resolved import ResolvedMixing, resolve

if TYPE_CHECKING:
    from orchestrator.mixing.table import MIXING_ALGORITHMS, AnyMixingConfig, build_mixing_algorithm, initial_weights

__all__ = [
    "MIXING_ALGORITHMS",
    "AnyMixingConfig",
    "Domain",
    "Measured",
    "MixingAlgorithm",
    "MixingConfig",
    "Needs",
    "ResolvedMixing",
    "build_mixing_algorithm",
    "initial_weights",
    "resolve",
]


def __getattr__(name: str) -> Any:
    # Not imported above: the table imports plugins, whose modules import this package.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from orchestrator.mixing import table

    return getattr(table, name)
