"""`raymix tune` from its configuration to search.json, its page and the best configuration.

    every search    data prepared, reference losses and shares that are to be detected measured: once, for all trials
    random, optuna  points of the space, each a whole run                                  sampling.py
    regmix          the same on random mixes, a regression, and one more run: its best mix  mixture_regression.py
    pbt             generations of stages, each from the best models of the one before      population.py

Everything lies in <output_dir>/<name>-tune. The truth is in the trials' folders there; started again, a search goes on.
"""

import json
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from rich.console import Console

from orchestrator.config.run import RunConfig
from orchestrator.config.search import PopulationConfig, RegMixConfig, SampledSearchConfig
from orchestrator.config.sweep import SweepConfig
from orchestrator.runs.lock import LOCK_FILE, hold
from orchestrator.sweeps.compare.results import target_of
from orchestrator.sweeps.crews import SideBySide
from orchestrator.sweeps.stages.train import RunsFailedError, train_runs
from orchestrator.sweeps.tune.generations import train_generations
from orchestrator.sweeps.tune.metric import describe_metric, score_losses
from orchestrator.sweeps.tune.mixture_regression import describe, predict_best_mix
from orchestrator.sweeps.tune.page import write_search_page
from orchestrator.sweeps.tune.preparing import SHARES, check_corners, search_folder, share_out, space_of
from orchestrator.sweeps.tune.results import SearchRecord, TrialRecord, base_score, best_of, collect, write_best
from orchestrator.sweeps.tune.sampling import train_points, tune_folder
from orchestrator.sweeps.tune.table import MAX_ROWS, table
from orchestrator.sweeps.tune.trial import TRIAL_FILE, Trials
from orchestrator.sweeps.work import Work, open_work
from orchestrator.views.format import format_loss
from workers.durable import write_durably


def tune(config: SweepConfig, console: Console) -> SearchRecord:
    """Search, then print the trials and write search.json, search.csv, search.html and best.yaml.

    Raises:
        ConfigError: values of the space do not fit the run; a line for each.
        ValueError: the configuration has no `search`.
        RunsFailedError: no trial came to its end.
    """
    search = config.search
    if search is None:
        raise ValueError("there is nothing to tune: add a `search` section; examples/search.yaml has one")
    if search.type == "optuna" and find_spec("optuna") is None:
        raise ValueError("search.type: optuna is not installed; run `pip install 'raymix[optuna]'`, or use random")
    folder = search_folder(config)
    space = space_of(config)
    check_corners(config, space)
    refusal = f"{folder}: another process is at this search; stop it or use another name"
    with hold(folder / LOCK_FILE, refusal):
        with open_work(folder / "raymix.log") as work:
            work.start_ray([config.cluster])
            trials = share_out(config, space, work)
            if isinstance(search, PopulationConfig):
                found = _population(trials, search, work)
            else:
                found = _sampled(config, search, trials, work)
            record = _search_record(config, found)
        _write(config, record, found, console)
    return record


@dataclass(frozen=True)
class _Found:
    records: list[TrialRecord]
    """In the order they began."""
    best: TrialRecord | None
    best_run: RunConfig | None
    notes: list[str]
    base_score: float | None


def _sampled(config: SweepConfig, search: SampledSearchConfig | RegMixConfig, trials: Trials, work: Work) -> _Found:
    points = trials.known_points()
    learns = search.type == "optuna"
    if not learns:
        drawn = trials.space.draw_points(search.num_trials, config.seed)
        points = (points + [point for point in drawn if point not in points])[: search.num_trials]
    with tune_folder(search_folder(config)) as storage:
        train_points(trials, points, search.num_trials if learns else len(points), search, storage, work.console)
    names = dict.fromkeys(trials.run_of(point).name for point in trials.known_points())
    folders = [trials.base.output_dir / name for name in names]
    records = collect(folders, trials)
    notes: list[str] = []
    if isinstance(search, RegMixConfig):
        validated, notes = _regress(config, search, trials, records, work)
        records.append(validated)
    best = best_of(records)
    best_run = trials.run_with(best.changes) if best else None
    return _Found(records, best, best_run, notes, base_score(folders, trials))


def _regress(
    config: SweepConfig, search: RegMixConfig, trials: Trials, records: list[TrialRecord], work: Work
) -> tuple[TrialRecord, list[str]]:
    """The run of the mix that the finished runs say is best, and what they say."""
    names, domains = config.trained_domains, list(config.domains)
    done = [record for record in records if record.state == "finished" and None not in record.losses_nats.values()]
    prediction = predict_best_mix(
        np.array([[record.changes[SHARES][name] for name in names] for record in done]),
        np.array([[record.losses_nats[name] for name in domains] for record in done], dtype=np.float64),
        lambda losses_ND: score_losses(search.metric, losses_ND, domains, trials.target),
        search.concentration,
        config.seed,
    )
    shares = dict(zip(names, prediction.shares_D.tolist(), strict=True))
    run = trials.run_with({SHARES: shares})
    run = run.replaced(name=run.name.replace("trial", "predicted"))
    run.folder.mkdir(exist_ok=True)
    write_durably(run.folder / TRIAL_FILE, json.dumps({"changes": {SHARES: shares}}, indent=1).encode())
    work.console.print("the predicted best mix, trained:", highlight=False)
    if failures := train_runs([run], work, SideBySide(work.console), keeps_models=False):
        raise RunsFailedError(failures, 1)
    (validated,) = collect([run.folder], trials)
    notes = [*describe(prediction, names), f"Trained, it reaches {format_loss(validated.score)}."]
    return validated, notes


def _population(trials: Trials, search: PopulationConfig, work: Work) -> _Found:
    records, plans = train_generations(trials, search, work)
    best = best_of(records)
    notes = ["(n): in generation n. The best member is a plan: a stage for each generation."]
    return _Found(records, best, plans[best.name] if best else None, notes, None)


def _search_record(config: SweepConfig, found: _Found) -> SearchRecord:
    search = config.search
    assert search is not None
    return SearchRecord(
        name=config.name,
        type=search.type,
        metric=describe_metric(search.metric, target_of(config)),
        base_score=found.base_score,
        trials=found.records,
        best=found.best.name if found.best else None,
        notes=found.notes,
    )


def _write(config: SweepConfig, record: SearchRecord, found: _Found, console: Console) -> None:
    folder = search_folder(config)
    write_durably(folder / "search.json", record.model_dump_json(indent=1).encode())
    write_durably(folder / "search.csv", table(record).to_csv().encode())
    write_search_page(record, folder / "search.html")
    console.print(table(record).to_rich(MAX_ROWS))
    console.print(f"page: {folder / 'search.html'}", highlight=False, soft_wrap=True)
    if found.best is None or found.best_run is None:
        raise RunsFailedError({trial.name: trial.reason for trial in record.trials}, len(record.trials))
    run = found.best_run.replaced(name=f"{config.name}-best", output_dir=config.output_dir)
    score = f"{record.metric} {found.best.score:.6f} at the end"
    about = f"The best of {len(record.trials)} trials of {config.name}: {score}."
    path = folder / "best.yaml"
    write_best(path, run, [about])
    console.print(f"the best, as a run: raymix run {path}", highlight=False, markup=False, soft_wrap=True)
