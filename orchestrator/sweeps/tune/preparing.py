"""What comes before the trials of a search: its space, checked, and all that they share, measured once."""

from pathlib import Path

from orchestrator.cluster.resources import check_resources
from orchestrator.config.derived import derive, nested
from orchestrator.config.errors import ConfigError
from orchestrator.config.run import RunConfig
from orchestrator.config.search import Distribution, RegMixConfig, SampledSearchConfig
from orchestrator.config.sweep import SweepConfig
from orchestrator.mixing.fixed import FixedConfig
from orchestrator.prepare.detection.rounds import find_distribution
from orchestrator.prepare.importance import with_importance
from orchestrator.sweeps.compare.results import target_of
from orchestrator.sweeps.references import compute_references
from orchestrator.sweeps.tune.space import SearchSpace
from orchestrator.sweeps.tune.trial import Trials
from orchestrator.sweeps.work import Work

SHARES = "mixing.shares"


def search_folder(config: SweepConfig) -> Path:
    """Where a search's trials and results lie."""
    return config.output_dir / f"{config.name}-tune"


def space_of(config: SweepConfig) -> SearchSpace:
    """The space that is searched."""
    search = config.search
    if isinstance(search, RegMixConfig):
        return SearchSpace({SHARES: Distribution(simplex=search.concentration)}, config.trained_domains)
    assert search is not None
    return SearchSpace(search.space, config.trained_domains)


def _varied(config: SweepConfig) -> RunConfig:
    """The run that trials are variants of."""
    if not isinstance(config.search, RegMixConfig):
        return config.plan
    shares = {name: 1 / len(config.trained_domains) for name in config.trained_domains}
    return config.plan.replaced(mixing=FixedConfig(type="fixed", unit=config.mixing.unit, shares=shares))


def check_corners(config: SweepConfig, space: SearchSpace) -> None:
    """Refuse a space with values that do not fit the run, every bound and every option tried once.

    Raises:
        ConfigError: a line for each fault.
    """
    faults = []
    for changes in space.corners():
        try:
            derive(RunConfig, _varied(config), nested(changes), "search.space")
        except ConfigError as error:
            faults += error.lines
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))


def share_out(config: SweepConfig, space: SearchSpace, work: Work) -> Trials:
    """What all trials have in common, measured now where it has to be measured. Inside a Ray session."""
    search = config.search
    assert search is not None
    check_resources(config.cluster)
    varied = _varied(config)
    stores = work.data.stores(varied)
    variants = [varied, *(derive(RunConfig, varied, nested(changes), "search.space") for changes in space.corners())]
    references = shares = None
    for mixing in (variant.mixing for variant in variants):
        with_mixing = varied.replaced(mixing=mixing)
        if references is None and mixing.needs.references == "computed":
            references = compute_references(with_mixing, stores, work)
        if shares is None and mixing.needs.distribution == "detected":
            work.console.print("initial shares: detecting what the base model knows")
            found = find_distribution(with_mixing, work.console).shares
            shares = {name: found[name] for name in config.trained_domains}
    base = with_importance(varied, stores, work.console, in_folder=False)
    placed = {
        "output_dir": search_folder(config).resolve(),
        "data": base.data.replaced(cache_dir=config.cache_dir.resolve()),
        "model": base.model.with_absolute_paths(),
        "training": base.training.with_absolute_paths(),
    }
    return Trials(
        base=base.replaced(**placed),
        space=space,
        stores=stores,
        metric=search.metric,
        target=target_of(config),
        references=references,
        shares=shares,
        ends_early=isinstance(search, SampledSearchConfig) and search.asha is not None,
    )
