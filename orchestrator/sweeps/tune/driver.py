"""`raymix tune` from its configuration to search.json, its page and the best configuration.

Data is prepared, and reference losses and shares that are to be detected are measured, once for all trials. Everything
is in <output_dir>/<name>-tune. The truth is in the trials' folders there: started again, a search resumes.
"""

from importlib.util import find_spec

from rich.console import Console

from orchestrator.config.sweep import SweepConfig
from orchestrator.runs.lock import LOCK_FILE, hold
from orchestrator.searches.metric import describe_metric
from orchestrator.searches.sampled import Sampled
from orchestrator.sweeps.results import publish
from orchestrator.sweeps.run import RunsFailedError
from orchestrator.sweeps.tune.batches import train_batches
from orchestrator.sweeps.tune.page import MAX_ROWS, table, write_search_page
from orchestrator.sweeps.tune.preparing import find_corners, search_folder, share_out
from orchestrator.sweeps.tune.results import SearchRecord, base_score, best_of, write_best
from orchestrator.sweeps.work import open_work


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
