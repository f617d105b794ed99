"""`raymix tune` from its configuration to search.json, its page and the best configuration.

    every search    data prepared, reference losses and shares that are to be detected measured: once, for all trials
    random, optuna  points of the space, each a whole run                                  sampling.py
    regmix          the same on random mixes, a regression, and one more run: its best mix  mixture_regression.py
    pbt             generations of stages, each from the best models of the one before      population.py

Everything lies in <output_dir>/<name>-tune. The truth is in the trials' folders there; started again, a search goes on.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console

from orchestrator.cluster.session import ray_session
from orchestrator.config.run import RunConfig
from orchestrator.config.search import PopulationConfig, RegMixConfig, SampledSearchConfig
from orchestrator.sweeps.compare.results import target_of
from orchestrator.sweeps.running import TrialsFailedError, run_trials, tune_folder
from orchestrator.sweeps.tune.generations import train_generations
from orchestrator.sweeps.tune.metric import describe_metric, score_losses
from orchestrator.sweeps.tune.mixture_regression import describe, predict_best_mix
from orchestrator.sweeps.tune.page import write_search_page
from orchestrator.sweeps.tune.preparing import SHARES, check_corners, search_folder, share_out, space_of
from orchestrator.sweeps.tune.results import SearchRecord, TrialRecord, base_score, best_of, collect, write_best
from orchestrator.sweeps.tune.sampling import train_points
from orchestrator.sweeps.tune.space import SearchSpace
from orchestrator.sweeps.tune.trial import TRIAL_FILE, Trials
from orchestrator.sweeps.tune.view import search_view
from orchestrator.views.quiet import chatter_to
from orchestrator.views.terminal import format_loss
from workers.durable import write_durably


def tune(config: RunConfig, console: Console) -> SearchRecord:
    """Search, then print the trials and write search.json, search.html and best.yaml.

    Raises:
        ConfigError: values of the space do not fit the run; a line for each.
        ValueError: the configuration has no `search`.
        TrialsFailedError: no trial came to its end.
    """
    search = config.search
    if search is None:
        raise ValueError("there is nothing to tune: add a `search` section; examples/search.yaml has one")
    if search.type == "optuna" and find_spec("optuna") is None:
        raise ValueError("search.type: optuna is not installed; run `pip install 'raymix[optuna]'`, or use random")
    folder = search_folder(config)
    space = space_of(config)
    check_corners(config, space)
    with _hold(folder):
        if isinstance(search, PopulationConfig):
            found = _population(config, search, space, console)
        else:
            found = _sampled(config, search, space, console)
        _write(config, found, console)
    return found.record


@dataclass(frozen=True)
class _Found:
    record: SearchRecord
    best: RunConfig | None


@contextmanager
def _hold(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".driver.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(f"{folder}: another process is at this search; stop it or use another name") from None
    try:
        yield
    finally:
        lock.release()


def _sampled(
    config: RunConfig, search: SampledSearchConfig | RegMixConfig, space: SearchSpace, console: Console
) -> _Found:
    folder = search_folder(config)
    with chatter_to(folder / "raymix.log") as quiet, tune_folder(folder, [folder]) as storage:
        quiet.print(f"{config.name}: starting Ray ({config.cluster.address})", markup=False, highlight=False)
        with ray_session(config.cluster, include_dashboard=True):
            trials = share_out(config, space, quiet)
            points = trials.known_points()
            learns = search.type == "optuna"
            if not learns:
                drawn = space.draw_points(search.num_trials, config.seed)
                points = (points + [point for point in drawn if point not in points])[: search.num_trials]
            num_trials = search.num_trials if learns else len(points)
            train_points(trials, points, num_trials, search, storage, quiet)
    names = dict.fromkeys(trials.run_of(point).name for point in trials.known_points())
    folders = [trials.base.output_dir / name for name in names]
    records = collect(folders, trials)
    notes: list[str] = []
    if isinstance(search, RegMixConfig):
        validated, notes = _regress(config, search, trials, records, console)
        records.append(validated)
    best = best_of(records)
    record = _search_record(config, records, best, notes, base_score(folders, trials))
    return _Found(record, trials.run_with(best.changes) if best else None)


def _regress(
    config: RunConfig, search: RegMixConfig, trials: Trials, records: list[TrialRecord], console: Console
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
    run = run.model_copy(update={"name": run.name.replace("trial", "predicted")})
    run.folder.mkdir(exist_ok=True)
    write_durably(run.folder / TRIAL_FILE, json.dumps({"changes": {SHARES: shares}}, indent=1).encode())
    console.print("the predicted best mix, trained:", highlight=False)
    run_trials([run], console, keep_models=False)
    (validated,) = collect([run.folder], trials)
    notes = [*describe(prediction, names), f"Trained, it reaches {format_loss(validated.score)}."]
    return validated, notes


def _population(config: RunConfig, search: PopulationConfig, space: SearchSpace, console: Console) -> _Found:
    folder = search_folder(config)
    with chatter_to(folder / "raymix.log") as quiet:
        quiet.print(f"{config.name}: starting Ray ({config.cluster.address})", markup=False, highlight=False)
        with ray_session(config.cluster):
            trials = share_out(config, space, quiet)
    records, plans = train_generations(trials, search, console)
    best = best_of(records)
    record = _search_record(
        config, records, best, ["(n): in generation n. The best member is a plan: a stage for each generation."], None
    )
    return _Found(record, plans[best.name] if best else None)


def _search_record(
    config: RunConfig,
    records: list[TrialRecord],
    best: TrialRecord | None,
    notes: list[str],
    base: float | None,
) -> SearchRecord:
    search = config.search
    assert search is not None
    return SearchRecord(
        name=config.name,
        type=search.type,
        metric=describe_metric(search.metric, target_of(config)),
        base_score=base,
        trials=records,
        best=best.name if best else None,
        notes=notes,
    )


def _write(config: RunConfig, found: _Found, console: Console) -> None:
    folder, record = search_folder(config), found.record
    write_durably(folder / "search.json", record.model_dump_json(indent=1).encode())
    write_search_page(record, folder / "search.html")
    console.print(search_view(record))
    console.print(f"page: {folder / 'search.html'}", highlight=False, soft_wrap=True)
    if found.best is None or record.best is None:
        raise TrialsFailedError({trial.name: trial.reason for trial in record.trials}, len(record.trials))
    best = record.trial(record.best)
    run = found.best.model_copy(update={"name": f"{config.name}-best", "output_dir": config.output_dir})
    about = f"The best of {len(record.trials)} trials of {config.name}: {record.metric} {best.score:.6f} at the end."
    path = folder / "best.yaml"
    write_best(path, run, [about])
    console.print(f"the best, as a run: raymix run {path}", highlight=False, markup=False, soft_wrap=True)
