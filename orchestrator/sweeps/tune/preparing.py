"""What comes before the trials of a search: its corners, checked, and all that they share, measured once."""

from pathlib import Path
from typing import Any

from orchestrator.cluster.resources import check_resources
from orchestrator.config.derived import derive, nested
from orchestrator.config.errors import ConfigError
from orchestrator.config.plan import PlanConfig
from orchestrator.config.run import RunConfig
from orchestrator.config.sweep import SweepConfig
from orchestrator.mixing import Measured
from orchestrator.mixing.needs import Source
from orchestrator.prepare.detection.rounds import find_distribution
from orchestrator.prepare.importance import with_importance
from orchestrator.searches import Search
from orchestrator.sweeps.references import compute_references
from orchestrator.sweeps.tune.trials import Trials
from orchestrator.sweeps.work import Work


def search_folder(config: SweepConfig) -> Path:
    return config.output_dir / f"{config.name}-tune"


def _varied(config: SweepConfig, search: Search[Any]) -> PlanConfig:
    mixing = search.vary(config.mixing)
    return config.plan if mixing is config.mixing else config.plan.replaced(mixing=mixing)


def find_corners(config: SweepConfig, search: Search[Any]) -> list[RunConfig]:
    """Runs that show every bound and every option of the space once.

    Raises:
        ConfigError: some values do not fit the run; a line for each fault.
    """
    varied, corners, faults = _varied(config, search), [], []
    for changes in search.space.corners():
        try:
            corners.append(derive(RunConfig, varied, nested(changes), "search.space"))
        except ConfigError as error:
            faults += error.lines
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))
    return corners


def share_out(config: SweepConfig, search: Search[Any], work: Work) -> Trials:
    """What all trials have in common, measured now where it has to be measured. Inside a Ray session."""
    check_resources(config.cluster)
    varied = _varied(config, search)
    stores = work.data.stores(varied)
    references: dict[Source, dict[str, float]] = {}
    distributions: dict[Source, dict[str, float]] = {}
    for variant in (varied, *find_corners(config, search)):
        with_mixing, needs = varied.replaced(mixing=variant.mixing), variant.mixing.needs
        if needs.references == "computed" and not references:
            references["computed"] = compute_references(with_mixing, stores, work)
        if needs.distribution == "detected" and not distributions:
            work.console.print("initial shares: detecting what the base model knows")
            found = find_distribution(with_mixing, work.console).shares
            distributions["detected"] = {name: found[name] for name in config.trained_domains}
    base = with_importance(varied, stores, work.console, in_folder=False)
    placed = {
        "output_dir": search_folder(config).resolve(),
        "data": base.data.replaced(cache_dir=config.cache_dir.resolve()),
        "model": base.model.with_absolute_paths(),
        "training": base.training.with_absolute_paths(),
    }
    return Trials(
        base=base.replaced(**placed),
        space=search.space,
        stores=stores,
        metric=search.config.metric,
        target=config.target,
        measured=Measured(distributions=distributions, references=references),
    )
