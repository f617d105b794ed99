"""The verbs for sets of runs: compare, tune, study and coarse-search."""

from typing import Annotated

import typer
from rich.console import Console

from orchestrator.cli.arguments import ConfigFile, Overrides, read_config
from orchestrator.views.console import plain_errors


def compare(
    config: ConfigFile,
    overrides: Overrides,
    algorithms: Annotated[
        str,
        typer.Option(metavar="A,B,...", help="Algorithms, or labels from compare.variants; the first is the baseline."),
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per algorithm or variant.")] = 3,
) -> None:
    """Compare algorithms or other variants of a run, with the same budget and over several seeds."""
    with plain_errors():
        settings = read_config(config, overrides)
        from orchestrator.sweeps.compare.driver import compare as compare_variants

        labels = [label.strip() for label in algorithms.split(",") if label.strip()]
        compare_variants(settings, labels, seeds, Console())


def tune(config: ConfigFile, overrides: Overrides) -> None:
    """Search for the settings or the mixture with the lowest loss, with many runs in parallel; see `search`."""
    with plain_errors():
        settings = read_config(config, overrides)
        from orchestrator.sweeps.tune.driver import tune as search_values

        search_values(settings, Console())


def study(
    config: ConfigFile,
    overrides: Overrides,
    estimate: Annotated[bool, typer.Option("--estimate", help="Print the estimated cost and exit.")] = False,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=0.001, help="Speed for the estimate; default: that of finished runs.")
    ] = None,
) -> None:
    """Study the effect of data amounts and order (DMT): train the cells of `study`, shared runs only once."""
    with plain_errors():
        settings = read_config(config, overrides)
        from orchestrator.sweeps.study.driver import run_study

        run_study(settings, Console(), estimate_only=estimate, tokens_per_second=tokens_per_second)


def coarse_search(config: ConfigFile, overrides: Overrides) -> None:
    """Search for the best layers and modules to train (CoFiTune) by training each candidate; see `coarse_search`."""
    with plain_errors():
        settings = read_config(config, overrides)
        from orchestrator.sweeps.coarse.driver import coarse_search as search_coarsely

        search_coarsely(settings, Console())
