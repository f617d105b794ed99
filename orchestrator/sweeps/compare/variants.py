"""A configuration and labels -> the runs to compare. Pure: everything is checked before anything is started."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.config.derived import derive, merge, nested
from orchestrator.config.errors import ConfigError
from orchestrator.config.plan import PlanConfig
from orchestrator.config.run import RunConfig
from orchestrator.config.sweep import SweepConfig
from orchestrator.mixing import MIXING_ALGORITHMS


def compare_folder(config: RunConfig) -> Path:
    return config.output_dir / f"{config.name}-compare"


def default_labels(config: SweepConfig) -> list[str]:
    """All variants of the configuration; without any, `uniform` and the run's own algorithm."""
    return list(config.compare.variants) or list(dict.fromkeys(["uniform", config.mixing.type]))


def expand_variants(config: SweepConfig, labels: Sequence[str], num_seeds: int) -> dict[str, list[PlanConfig]]:
    """The runs of each label, one for each seed from the configuration's own on.

    A label is a variant of the configuration, or a mixing algorithm: with the run's own settings where it is the run's,
    else with its defaults.

    Raises:
        ConfigError: a line for each fault of each variant.
    """
    if twice := sorted({label for label in labels if list(labels).count(label) > 1}):
        raise ConfigError([f"{', '.join(twice)}: duplicate label; give each label once"])
    runs, faults = {}, []
    for label in labels:
        try:
            changes = _changes(config, label)
            runs[label] = [_variant(config, label, changes, config.seed + index) for index in range(num_seeds)]
        except ConfigError as error:
            faults += error.lines
    if faults:
        raise ConfigError(faults)
    return runs


def _changes(config: SweepConfig, label: str) -> dict[str, Any]:
    if label in config.compare.variants:
        return nested(config.compare.variants[label])
    if label == config.mixing.type:
        return {}
    if label in MIXING_ALGORITHMS:
        return {"mixing": {"type": label, "unit": config.mixing.unit}}
    known = [*config.compare.variants, *MIXING_ALGORITHMS]
    raise ConfigError([f"{label!r} is neither one of compare.variants nor an algorithm; known: {', '.join(known)}"])


def _variant(config: SweepConfig, label: str, changes: Mapping[str, Any], seed: int) -> PlanConfig:
    place = f"compare.variants.{label}" if label in config.compare.variants else f"algorithm {label}"
    own = {"name": f"{label}-seed{seed}", "output_dir": str(compare_folder(config)), "seed": seed}
    return derive(PlanConfig, config, merge(changes, own), place)
