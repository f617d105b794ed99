"""From settings as they are written to settings that an algorithm can be built from: `resolve`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.mixing.base import MixingConfig
from orchestrator.mixing.needs import Measured


@dataclass(frozen=True)
class ResolvedMixing:
    """Settings with numbers for all that their algorithm needs, for exactly the domains of a run; `resolve` makes it.

    What a run folder keeps (config.json) are the settings as they were written; this is what its controller gets.
    """

    config: MixingConfig


def resolve(config: MixingConfig, measured: Measured, names: Sequence[str]) -> ResolvedMixing:
    """The settings with what was measured or read in the place of the words and files that stand for it.

    Args:
        config: as written.
        measured: numbers by domain.
        names: the domains that are trained on.

    Raises:
        ValueError: the settings or the numbers are of other domains, or something that is needed is not known.
    """
    known = config.with_measured(measured)
    known.check_domains(names)
    for what, left in (("shares", known.needs.distribution), ("losses", known.needs.references)):
        if isinstance(left, str | Path):
            raise ValueError(f"mixing: {left} has to be turned into {what} by domain first")
    return ResolvedMixing(known)
