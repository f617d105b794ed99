"""`raymix study`: the cost first, then wave after wave of trainings side by side, and the results after each.

Stopped and started again it goes on: what is trained is found by its digest, what is half trained goes on from its
checkpoint.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from orchestrator.config.run import RunConfig
from orchestrator.config.study import StudyConfig
from orchestrator.prepare.token_stores import DomainStores, training_stores
from orchestrator.runs.lock import claim_folder
from orchestrator.sweeps.running import TrialsFailedError, run_trials
from orchestrator.sweeps.stages.chain import Prepare
from orchestrator.sweeps.stages.running import sole_trainer
from orchestrator.sweeps.study.estimate import estimate_study, estimate_view
from orchestrator.sweeps.study.grid import Trainings, build_cells, plan_trainings
from orchestrator.sweeps.study.page import write_study_page
from orchestrator.sweeps.study.results import collect_results, write_results
from orchestrator.training.driver import prepare
from orchestrator.training.ray_train import TrainingFailedError


def run_study(
    config: RunConfig, console: Console, *, estimate_only: bool = False, tokens_per_second: float | None = None
) -> None:
    """Estimate, train what is missing, and write results.jsonl, results.csv and report.html.

    Args:
        config: a run with a `study`.
        console: where estimate and progress go.
        estimate_only: stop after the estimate.
        tokens_per_second: speed to estimate with, before anything is trained.

    Raises:
        TrainingFailedError: some trainings failed, or start from one that did; the results of all others are written.
    """
    cells = build_cells(config)
    assert config.study is not None  # or there are no cells
    trainings = plan_trainings(cells, prepare_once(console))
    console.print(estimate_view(estimate_study(trainings, tokens_per_second)))
    if estimate_only:
        return
    with claim_folder(config):
        folder = config.folder / "study"
        folder.mkdir(exist_ok=True)
        failures: dict[str, str] = {}
        for wave in trainings.waves():
            failures |= _run_wave(trainings, wave, console)
            _write(folder, config.name, config.study, trainings)
    console.print(f"results: {folder / 'results.csv'}\nreport:  {folder / 'report.html'}", highlight=False)
    if failures:
        lines = "\n".join(f"  {name}: {reason}" for name, reason in failures.items())
        raise TrainingFailedError(
            f"{len(failures)} of {len(trainings.stages)} trainings have no result; the same command tries them again:\n"
            + lines
        )


def prepare_once(console: Console) -> Prepare:
    """Prepares token stores like a run does, but looks at the same part of a domain once."""
    known: dict[tuple[str, str], DomainStores] = {}

    def prepare_stores(run: RunConfig) -> Mapping[str, DomainStores]:
        data = run.data.model_dump_json()
        keys = {name: (name, f"{domain.model_dump_json()} {data}") for name, domain in run.domains.items()}
        missing = {name: domain for name, domain in run.domains.items() if keys[name] not in known}
        if missing:
            stores = prepare(run.model_copy(update={"domains": missing}), Console(quiet=True))
            known.update({keys[name]: stores[name] for name in missing})
            for name, store in training_stores({name: stores[name] for name in missing}).items():
                console.print(f"prepared {store.num_examples:,} examples of {name}", markup=False, highlight=False)
        return {name: known[key] for name, key in keys.items()}

    return prepare_stores


def _run_wave(trainings: Trainings, wave: list[str], console: Console) -> dict[str, str]:
    """Train what is not done and can be started; name -> reason of each that has no result."""
    failures: dict[str, str] = {}
    with ExitStack() as held:
        for digest in sorted(wave):  # in one order, so that two studies never wait for each other
            if not _is_done(trainings, digest):
                held.enter_context(sole_trainer(trainings.stages[digest], console))
        configs = []
        for digest in wave:
            if _is_done(trainings, digest):
                continue
            planned, parent = trainings.stages[digest], trainings.parents[digest]
            folder = planned.find_folder()
            before = None if parent is None else trainings.stages[parent].find_folder()
            if before is None or (before / "summary.json").exists():
                configs.append(planned.started_from(before, folder))
            else:
                failures[folder.name] = f"not started: {before.name}, which it starts from, has no result"
        try:
            if configs:
                run_trials(configs, console)
        except TrialsFailedError as error:
            failures |= error.reasons
    return failures


def _is_done(trainings: Trainings, digest: str) -> bool:
    return (trainings.stages[digest].find_folder() / "summary.json").exists()


def _write(folder: Path, name: str, study: StudyConfig, trainings: Trainings) -> None:
    rows = collect_results(trainings)
    write_results(folder, rows)
    write_study_page(folder / "report.html", name, study, rows, len(trainings.cells))
