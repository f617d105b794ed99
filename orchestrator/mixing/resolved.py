"""From settings as written to settings that an algorithm can be built from: `resolve`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.mixing.base import MixingConfig
from orchestrator.mixing.needs import Measured


@dataclass(frozen=True)
class ResolvedMixing:
    """Settings with numbers for all that the algorithm needs, for exactly the domains of a run.

    The run folder keeps the settings as written (config.json); the controller receives these.
    """

    config: MixingConfig


def resolve(config: MixingConfig, measured: Measured, names: Sequence[str]) -> ResolvedMixing:
    """The settings, for the domains `names`, with words and files replaced by the numbers that were measured or read.

    ValueError if the settings or the numbers are for other domains, or if something needed is not known.
    """
    known = config.with_measured(measured)
    known.check_domains(names)
    for what, left in (("shares", known.needs.distribution), ("losses", known.needs.references)):
        if isinstance(left, str | Path):
            raise ValueError(f"mixing: the {what} by domain that {left} stands for are not known yet")
    return ResolvedMixing(known)
