"""`raymix tune` from its configuration to search.json, its page and the best configuration.

Data is prepared, and reference losses and shares that are to be detected are measured, once for all trials. Everything
is in <output_dir>/<name>-tune. The truth is in the trials' folders there: started again, a search resumes.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

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
from orchestrator.runs.lock import LOCK_FILE, hold
from orchestrator.searches import Search
from orchestrator.searches.base import describe_metric
from orchestrator.searches.sampled import Sampled
from orchestrator.sweeps.references import compute_references
from orchestrator.sweeps.results import publish
from orchestrator.sweeps.run import RunsFailedError
from orchestrator.sweeps.tune.batches import train_batches
from orchestrator.sweeps.tune.page import MAX_ROWS, table, write_search_page
from orchestrator.sweeps.tune.results import SearchRecord, base_score, best_of, write_best
from orchestrator.sweeps.tune.trials import Trials
from orchestrator.sweeps.work import Work, open_work


def tune(config: SweepConfig, console: Console) -> SearchRecord:
    """Search, then print the trials and write search.json, search.html and best.yaml.

    Raises:
        ConfigError: values of the space do not fit the run; a line for each.
        ValueError: the configuration has no `search`.
        RunsFailedError: no trial came to its end.
    """
    search, folder = config.build_search(), search_folder(config)
    if search.config.type == "optuna" and find_spec("optuna") is None:
        raise ValueError("search.type: optuna is not installed; run `pip install 'raymix[optuna]'`, or use random")
    find_corners(config, search)
    refusal = f"{folder}: another process is running this search; stop it or use another name"
    with hold(folder / LOCK_FILE, refusal):
        with open_work(folder / "raymix.log") as work:
            work.start_ray([config.cluster])
            trials = share_out(config, search, work)
            if isinstance(search, Sampled):
                from orchestrator.sweeps.tune.sampling import sample  # Ray Tune, which other searches do without

                found = sample(trials, search, work)
            else:
                found = train_batches(trials, search, work)
        best = best_of(found.records)
        record = SearchRecord(
            name=config.name,
            type=search.config.type,
            metric=describe_metric(search.config.metric, config.target),
            base_score=base_score([trial.folder for trial in found.records], trials),
            trials=found.records,
            best=best.name if best else None,
            notes=found.notes,
        )
        write_search_page(record, folder / "search.html")
        publish(record, table(record), folder / "search.html", console, MAX_ROWS)
        if best is None:
            raise RunsFailedError({trial.name: trial.reason for trial in found.records}, len(found.records))
        run = found.runs[best.name].replaced(name=f"{config.name}-best", output_dir=config.output_dir)
        score = f"{record.metric} {best.score:.6f} at the end"
        path = folder / "best.yaml"
        write_best(path, run, f"The best of {len(found.records)} trials of {config.name}: {score}.")
    console.print(f"the best, as a run: raymix run {path}", highlight=False, markup=False, soft_wrap=True)
    return record


def search_folder(config: SweepConfig) -> Path:
    return config.output_dir / f"{config.name}-tune"


def _varied(config: SweepConfig, search: Search[Any]) -> PlanConfig:
    mixing = search.vary(config.mixing)
    return config.plan if mixing is config.mixing else config.plan.replaced(mixing=mixing)


def find_corners(config: SweepConfig, search: Search[Any]) -> list[RunConfig]:
    """Runs that show every bound and every option of the space once.

    ConfigError, with a line for each fault, if some values do not fit the run.
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
