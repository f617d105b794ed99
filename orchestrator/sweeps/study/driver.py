"""`raymix study`: the cost first, then the trainings side by side, and the results after each that ends."""

from rich.console import Console

from orchestrator.config.sweep import SweepConfig
from orchestrator.runs.lock import claim_folder
from orchestrator.sweeps.crews import SideBySide
from orchestrator.sweeps.graph import run_graph
from orchestrator.sweeps.run import RunsFailedError
from orchestrator.sweeps.study.estimate import estimate_study, estimate_view
from orchestrator.sweeps.study.grid import build_cells, plan_trainings
from orchestrator.sweeps.study.page import write_study_page
from orchestrator.sweeps.study.results import collect_results, write_results
from orchestrator.sweeps.work import open_work


def run_study(
    config: SweepConfig, console: Console, *, estimate_only: bool = False, tokens_per_second: float | None = None
) -> None:
    """Estimate, train what is missing, and write results.jsonl, results.csv and report.html.

    Raises:
        RunsFailedError: some runs failed, or start from one that did; the results of all others are written.
    """
    cells = build_cells(config)
    assert config.study is not None  # or there are no cells
    folder = config.folder / "study"
    with open_work(config.output_dir / "trials.log") as work:
        trainings = plan_trainings(cells, work.data.stores)
        work.console.print(estimate_view(estimate_study(trainings, tokens_per_second)))
        if estimate_only:
            return
        with claim_folder(config):
            folder.mkdir(exist_ok=True)

            def write() -> None:
                rows = collect_results(trainings)
                write_results(folder, rows)
                write_study_page(folder / "report.html", config.name, study, rows, len(trainings.cells))

            study = config.study
            nodes = list(trainings.nodes.values())
            failures = run_graph(nodes, work, SideBySide(work.console), after=write)
            write()
    console.print(f"results: {folder / 'results.csv'}\nreport:  {folder / 'report.html'}", highlight=False)
    if failures:
        raise RunsFailedError({node.title: failures[node.key] for node in nodes if node.key in failures}, len(nodes))
