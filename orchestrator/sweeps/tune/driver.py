"""`raymix tune` from its configuration to search.json, its page and the best configuration.

Data is prepared, and reference losses and shares that are to be detected are measured, once for all trials. Everything
is in <output_dir>/<name>-tune. The truth is in the trials' folders there: started again, a search resumes.
"""

import shutil
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from orchestrator.cluster.session import check_resources
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
from orchestrator.searches import Proposal, Search, Trial
from orchestrator.searches.base import describe_metric
from orchestrator.searches.sampled import Sampled
from orchestrator.sweeps.crews import SideBySide
from orchestrator.sweeps.references import compute_references
from orchestrator.sweeps.run import RunsFailedError, train_runs
from orchestrator.sweeps.stages.chain import read_records
from orchestrator.sweeps.tune.page import MAX_ROWS, table, write_search_page
from orchestrator.sweeps.tune.trials import (
    Found,
    SearchRecord,
    TrialRecord,
    Trials,
    base_score,
    best_of,
    note_trial,
    read_trial,
    write_best,
)
from orchestrator.sweeps.work import Work, open_work, publish


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


def train_batches(trials: Trials, search: Search[Any], work: Work) -> Found:
    """Train batch after batch, inside a Ray session."""
    done: list[Trial] = []
    found = Found([], {}, [])
    number, before = 0, dict[str, RunConfig]()
    while proposals := search.next_trials(done):
        number += 1
        of_proposals = [_run_of(trials, proposal) for proposal in proposals]
        runs = {run.name: run for run in of_proposals if run is not None}
        work.console.print(f"{search.title(number)}: {len(runs)} runs", markup=False, highlight=False)
        crew = SideBySide(work.console, at_most=search.max_concurrent)
        keeps_models = any(proposal.num_steps for proposal in proposals)
        failures = train_runs(list(runs.values()), work, crew, keeps_models=keeps_models) if runs else {}
        _drop_models(run.folder for run in before.values())
        before = runs
        records = [_record(trials, *each, failures) for each in zip(proposals, of_proposals, strict=True)]
        done += [
            Trial(proposal, record.name, record.state, record.losses_nats, record.score)
            for proposal, record in zip(proposals, records, strict=True)
        ]
        earlier = [] if search.shows_last_batch_only else found.records
        found = Found([*earlier, *records], found.runs | runs, [])
    _drop_models(run.folder for run in before.values())
    return Found(found.records, found.runs, search.conclude(done))


def _run_of(trials: Trials, proposal: Proposal) -> RunConfig | None:
    """None where the values break the run's own rules."""
    try:
        run = trials.plan_of(proposal)
    except ConfigError:
        return None
    if proposal.num_steps is None:
        note_trial(run.folder, proposal.changes, proposal.point)
    return run


def _record(trials: Trials, proposal: Proposal, run: RunConfig | None, failures: dict[str, str]) -> TrialRecord:
    changes = dict(proposal.changes)
    if proposal.num_steps is not None:
        numbered = enumerate(proposal.chain, start=1)
        changes = {f"{key} ({place})": value for place, each in numbered for key, value in each.changes.items()}
    if run is None:
        reason = "the values do not fit together"
        return TrialRecord(name="-", folder=trials.base.output_dir, changes=changes, state="failed", reason=reason)
    if run.name in failures:
        reason = failures[run.name]
        return TrialRecord(name=run.name, folder=run.folder, changes=changes, state="failed", reason=reason)
    parts = [run.folder] if proposal.num_steps is None else [stage.folder for stage in read_records(run.folder)]
    return read_trial(trials, run.folder, changes, "finished", parts)


def _drop_models(folders: Iterable[Path]) -> None:
    """Remove models and checkpoints of plans that nothing starts from any more."""
    for folder in folders:
        if (folder / "stages.json").exists():
            for record in read_records(folder):
                for part in ("checkpoints", "model"):
                    shutil.rmtree(record.folder / part, ignore_errors=True)
