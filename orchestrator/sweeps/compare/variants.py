"""A configuration and labels -> the runs to compare. Pure: everything is checked before anything is started."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.config.errors import ConfigError, describe, format_path
from orchestrator.config.run import RunConfig
from orchestrator.mixing import MIXING_ALGORITHMS

_TAGS = ("type", "plan")  # what says which kind of section a mapping is


def compare_folder(config: RunConfig) -> Path:
    """Where a comparison's runs and results lie."""
    return config.output_dir / f"{config.name}-compare"


def default_labels(config: RunConfig) -> list[str]:
    """All variants of the configuration; without any, `uniform` and the run's own algorithm."""
    return list(config.compare.variants) or list(dict.fromkeys(["uniform", config.mixing.type]))


def expand_variants(config: RunConfig, labels: Sequence[str], num_seeds: int) -> dict[str, list[RunConfig]]:
    """The runs of each label, one for each seed from the configuration's own on.

    Args:
        config: the run that all of them are variants of.
        labels: names of variants of the configuration, or of mixing algorithms: the run's own settings where it is
            the run's algorithm, else that algorithm's defaults.
        num_seeds: seeds of each.

    Raises:
        ConfigError: a line for each fault of each variant.
    """
    if twice := sorted({label for label in labels if list(labels).count(label) > 1}):
        raise ConfigError([f"{', '.join(twice)}: stands twice among the labels to compare; give each once"])
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


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The base with the changes in it, nested mapping by nested mapping.

    A mapping replaces the base's where it says to be of another kind (`type`, `plan`): nothing of the old one fits.
    """
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if old is not None and _are_one_kind(old, value) else value
    return merged


def nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys written out: {"a.b": 1} is {"a": {"b": 1}}. Only the outermost keys are dotted."""
    result: dict[str, Any] = {}
    for dotted, value in changes.items():
        for name in reversed(dotted.split(".")):
            value = {name: value}
        result = merge(result, value)
    return result


def _are_one_kind(old: Any, new: Any) -> bool:
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return False
    return all(new.get(tag, old.get(tag)) == old.get(tag) for tag in _TAGS)


def _changes(config: RunConfig, label: str) -> dict[str, Any]:
    if label in config.compare.variants:
        return nested(config.compare.variants[label])
    if label == config.mixing.type:
        return {}
    if label in MIXING_ALGORITHMS:
        return {"mixing": {"type": label, "unit": config.mixing.unit}}
    known = [*config.compare.variants, *MIXING_ALGORITHMS]
    raise ConfigError([f"{label!r} is neither one of compare.variants nor an algorithm; known: {', '.join(known)}"])


def _variant(config: RunConfig, label: str, changes: Mapping[str, Any], seed: int) -> RunConfig:
    place = f"compare.variants.{label}" if label in config.compare.variants else f"algorithm {label}"
    own = {"name": f"{label}-seed{seed}", "output_dir": str(compare_folder(config)), "seed": seed}
    return derive_run(config, merge(changes, own), place)


def derive_run(config: RunConfig, changes: Mapping[str, Any], place: str) -> RunConfig:
    """The configuration with changes, as a run that shares its token stores.

    Raises:
        ConfigError: it is not valid; each line begins with `place`.
    """
    given = config.model_dump(mode="json", exclude_unset=True, exclude={"compare", "study", "coarse_search", "search"})
    data = merge(merge(given, {"data": {"cache_dir": str(config.cache_dir)}}), changes)
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        lines = [f"{place}: {format_path(key)}: {what}" for key, what in describe(error, data)]
        raise ConfigError(lines) from None
