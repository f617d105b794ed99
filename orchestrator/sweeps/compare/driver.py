"""`raymix compare` from its configuration and labels to its table: the runs of each variant, trained if need be."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.config.derived import derive, merge, nested
from orchestrator.config.errors import ConfigError, format_path
from orchestrator.config.machine import missing_gpus
from orchestrator.config.plan import PlanConfig
from orchestrator.config.run import RunConfig
from orchestrator.config.sweep import SweepConfig
from orchestrator.mixing import MIXING_ALGORITHMS
from orchestrator.sweeps.compare.page import table, write_comparison
from orchestrator.sweeps.compare.results import Comparison, collect
from orchestrator.sweeps.crews import SideBySide
from orchestrator.sweeps.run import RunsFailedError, train_runs
from orchestrator.sweeps.work import open_work, publish


def compare(config: SweepConfig, labels: Sequence[str], num_seeds: int, console: Console) -> Comparison:
    """Train the runs that are not done yet, then print their table and write compare.json and compare.html.

    Raises:
        ConfigError: a variant is not a valid configuration, or needs more than this machine has.
        RunsFailedError: after the table, where runs failed.
    """
    runs = expand_variants(config, labels or default_labels(config), num_seeds)
    everything = [run for variant in runs.values() for run in variant]
    if faults := [f"{run.name}: {format_path(key)}: {what}" for run in everything for key, what in missing_gpus(run)]:
        raise ConfigError(faults)
    with open_work(compare_folder(config) / "trials.log") as work:
        failures = train_runs(everything, work, SideBySide(work.console), keeps_models=False)
    comparison = collect(config, runs, failures)
    page = compare_folder(config) / "compare.html"
    write_comparison(comparison, page)
    publish(comparison, table(comparison), page, console)
    if failures:
        raise RunsFailedError(failures, len(everything))
    return comparison


def compare_folder(config: RunConfig) -> Path:
    return config.output_dir / f"{config.name}-compare"


def default_labels(config: SweepConfig) -> list[str]:
    """All variants of the configuration; without any, `uniform` and the run's own algorithm."""
    return list(config.compare.variants) or list(dict.fromkeys(["uniform", config.mixing.type]))


def expand_variants(config: SweepConfig, labels: Sequence[str], num_seeds: int) -> dict[str, list[PlanConfig]]:
    """The runs of each label, one for each seed from the configuration's own on.

    A label is a variant of the configuration, or a mixing algorithm: with the run's own settings where it is the run's,
    else with its defaults.

    ConfigError with a line for each fault of each variant.
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
