"""`raymix evaluate`: benchmark a run's base model and its result under the same conditions."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from orchestrator.benchmarks.harness import ScoringView, evaluate_model, harness_version, load_tasks
from orchestrator.config.sweep import read_begun
from orchestrator.export.driver import find_result
from orchestrator.runs.benchmark_record import TASK_FILE, add_scores, read_scores, scores_from
from orchestrator.views.console import redirect_output
from orchestrator.views.report.benchmarks import scores_table
from orchestrator.views.report.html import write_report


def evaluate(
    run_folder: Path,
    names: Sequence[str],
    console: Console,
    *,
    tasks_folder: Path | None = None,
    is_best: bool = False,
    limit: int | None = None,
    batch_size: int = 8,
    chat: bool = False,
    allow_code: bool = False,
) -> None:
    """Evaluate both models of a finished run, add the scores to tasks.json and to the run's report, and print them.

    `names` are tasks, groups or tags, from the harness or from `tasks_folder`; the other settings are those of
    `raymix evaluate`. ValueError if there is no such result, the harness is not installed, or a task is unknown or does
    not load.
    """
    _, result_folder = find_result(run_folder, is_best, console)
    if not names:
        raise ValueError("--tasks names no task; for example: --tasks gsm8k")
    version = harness_version()
    read_scores(run_folder)  # a damaged file fails now, not after hours
    base = read_begun(run_folder).model.with_absolute_paths()
    result = base.replaced(path=str(result_folder), revision=None, chat_template=None)
    measured = {}
    with redirect_output(run_folder / "raymix.log") as quiet_console:
        quiet_console.print(f"loading {', '.join(names)}", markup=False, highlight=False)
        tasks = load_tasks(names, tasks_folder, allow_code)
        for name, model in {"base": base, "result": result}.items():
            with ScoringView(name, quiet_console) as view:
                measured[name] = evaluate_model(
                    model, tasks, view, limit=limit, batch_size=batch_size, chat=chat, allow_code=allow_code
                )
    terms = {"model": result_folder.name, "limit": limit, "chat": chat}
    scores = scores_from(measured["base"], measured["result"], version, terms)
    add_scores(run_folder, scores)
    write_report([run_folder], run_folder / "report.html")
    console.print(scores_table(scores).to_rich())
    places = f"scores: {run_folder / TASK_FILE}, report: {run_folder / 'report.html'}"
    console.print(places, markup=False, highlight=False, soft_wrap=True)
