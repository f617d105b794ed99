"""`raymix compare` from its configuration to its table."""

from collections.abc import Sequence

from rich.console import Console

from orchestrator.config.errors import ConfigError, format_path
from orchestrator.config.machine import missing_gpus
from orchestrator.config.sweep import SweepConfig
from orchestrator.sweeps.compare.page import table, write_comparison
from orchestrator.sweeps.compare.results import Comparison, collect
from orchestrator.sweeps.compare.variants import compare_folder, default_labels, expand_variants
from orchestrator.sweeps.crews import SideBySide
from orchestrator.sweeps.results import publish
from orchestrator.sweeps.run import RunsFailedError, train_runs
from orchestrator.sweeps.work import open_work


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
    with open_work(config.output_dir / "trials.log") as work:
        failures = train_runs(everything, work, SideBySide(work.console), keeps_models=False)
    comparison = collect(config, runs, failures)
    page = compare_folder(config) / "compare.html"
    write_comparison(comparison, page)
    publish(comparison, table(comparison), page, console)
    if failures:
        raise RunsFailedError(failures, len(everything))
    return comparison
