"""Mixing algorithms: how the shares of the domains follow from what was measured. Pure: no Ray, no torch, no clock.

base.py       what every algorithm and its settings are
needs.py      what settings can leave open: reference losses, a base distribution; how fields say so
resolved.py   settings as written -> settings with numbers
table.py      the algorithms, those of installed plugins included

To add one, write a file with a config class (its `type` names it) and a subclass of `MixingAlgorithm`, and give it a
line in the table. Nothing else changes: no other part knows the fields of an algorithm's settings. One that answers to
more than losses names its signals in its config class (`required_signals`; workers/signals has them). An algorithm in
a package of its own is an entry point: docs/extending.md.
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
