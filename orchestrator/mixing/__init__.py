"""Mixing algorithms: how domain shares follow from measurements. Pure: no Ray, no torch, no clock.

To add one, write a file with a config class (its `type` is the name) and a subclass of `MixingAlgorithm`, and add a
line to the table. Nothing else changes: no other part knows the fields of an algorithm's settings. An algorithm that
uses more than losses lists its signals in its config class (`required_signals`; they are in workers/signals). An
algorithm in a separate package is an entry point: docs/extending.md.
"""

from typing import TYPE_CHECKING

from orchestrator.mixing.base import Domain, MixingAlgorithm, MixingConfig, ResolvedMixing, resolve_mixing
from orchestrator.mixing.needs import Measured, Needs
from workers.plugins import names_of_table

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
    "resolve_mixing",
]

__getattr__ = names_of_table("orchestrator.mixing.table", __all__)
