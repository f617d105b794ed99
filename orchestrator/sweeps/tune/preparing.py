"""What comes before the trials of a search: its space, checked, and all that they share, measured once."""

from pathlib import Path

from rich.console import Console

from orchestrator.config.errors import ConfigError
from orchestrator.config.run import RunConfig
from orchestrator.config.search import Distribution, RegMixConfig, SampledSearchConfig
from orchestrator.mixing.fixed import FixedConfig
from orchestrator.prepare.detection.rounds import find_distribution
from orchestrator.prepare.importance import with_importance
from orchestrator.sweeps.compare.results import target_of
from orchestrator.sweeps.compare.variants import derive_run, nested
from orchestrator.sweeps.references import compute_references, wants_computed
from orchestrator.sweeps.tune.space import SearchSpace
from orchestrator.sweeps.tune.trial import Trials
from orchestrator.training.driver import prepare
from orchestrator.training.ray_train import check_resources

SHARES = "mixing.shares"


def search_folder(config: RunConfig) -> Path:
    """Where a search's trials and results lie."""
    return config.output_dir / f"{config.name}-tune"


def space_of(config: RunConfig) -> SearchSpace:
    """The space that is searched."""
    search = config.search
    if isinstance(search, RegMixConfig):
        return SearchSpace({SHARES: Distribution(simplex=search.concentration)}, config.trained_domains)
    assert search is not None
    return SearchSpace(search.space, config.trained_domains)


def _varied(config: RunConfig) -> RunConfig:
    """The run that trials are variants of."""
    if not isinstance(config.search, RegMixConfig):
        return config
    shares = {name: 1 / len(config.trained_domains) for name in config.trained_domains}
    return config.model_copy(update={"mixing": FixedConfig(type="fixed", unit=config.mixing.unit, shares=shares)})


def check_corners(config: RunConfig, space: SearchSpace) -> None:
    """Refuse a space with values that do not fit the run, every bound and every option tried once.

    Raises:
        ConfigError: a line for each fault.
    """
    faults = []
    for changes in space.corners():
        try:
            derive_run(_varied(config), nested(changes), "search.space")
        except ConfigError as error:
            faults += error.lines
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))


def share_out(config: RunConfig, space: SearchSpace, console: Console) -> Trials:
    """What all trials have in common, measured now where it has to be measured. Inside a Ray session."""
    search = config.search
    assert search is not None
    check_resources(config.cluster)
    varied = _varied(config)
    stores = prepare(varied, console)
    variants = [varied, *(derive_run(varied, nested(changes), "search.space") for changes in space.corners())]
    references = shares = None
    for mixing in (variant.mixing for variant in variants):
        with_mixing = varied.model_copy(update={"mixing": mixing})
        if references is None and wants_computed(mixing):
            references = compute_references(with_mixing, stores, console)
        if shares is None and "detected" in (getattr(mixing, "initial", None), getattr(mixing, "shares", None)):
            console.print("initial shares: detecting what the base model knows")
            found = find_distribution(with_mixing, console).shares
            shares = {name: found[name] for name in config.trained_domains}
    base = with_importance(varied, stores, console, in_folder=False)
    placed = {
        "output_dir": search_folder(config).resolve(),
        "data": base.data.model_copy(update={"cache_dir": config.cache_dir.resolve()}),
        "model": base.model.with_absolute_paths(),
        "training": base.training.with_absolute_paths(),
    }
    return Trials(
        base=base.model_copy(update=placed),
        space=space,
        stores=stores,
        metric=search.metric,
        target=target_of(config),
        references=references,
        shares=shares,
        ends_early=isinstance(search, SampledSearchConfig) and search.asha is not None,
    )
