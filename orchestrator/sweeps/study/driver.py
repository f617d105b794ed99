"""`raymix study`: the cost first, then the trainings side by side, and the results after each that ends."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.text import Text

from orchestrator.config.sweep import SweepConfig
from orchestrator.runs.folder import read_run
from orchestrator.runs.lock import claim_folder
from orchestrator.sweeps.crews import SideBySide
from orchestrator.sweeps.graph import run_graph
from orchestrator.sweeps.run import RunsFailedError
from orchestrator.sweeps.study.grid import Trainings, build_cells, plan_trainings
from orchestrator.sweeps.study.page import write_study_page
from orchestrator.sweeps.study.results import collect_results, write_results
from orchestrator.sweeps.work import open_work
from orchestrator.training.plan import count_steps, mean_tokens_per_row
from orchestrator.views.format import format_count, format_duration, printable
from orchestrator.views.table import ResultTable, Row, columns_of


def run_study(
    config: SweepConfig, console: Console, *, estimate_only: bool = False, tokens_per_second: float | None = None
) -> None:
    """Estimate, train what is missing, and write results.jsonl, results.csv and report.html.

    RunsFailedError if some runs failed, or start from one that did; the results of all others are written.
    """
    cells = build_cells(config)
    assert config.study is not None  # or there are no cells
    folder = config.folder / "study"
    with open_work(config.output_dir / "stages" / "trials.log") as work:
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


@dataclass(frozen=True)
class Cost:
    """Of one training; its tokens are those of its rows at the mean tokens in a row under the initial weights."""

    steps: int
    num_rows: int
    num_tokens: int
    is_done: bool


@dataclass(frozen=True)
class CostEstimate:
    """Of a whole study."""

    num_cells: int
    num_distinct_cells: int
    costs: Mapping[str, Cost]
    """By digest of the training."""
    tokens_per_second: float
    """Measured on the trainings that are done, or given; NaN without either."""


def estimate_study(trainings: Trainings, tokens_per_second: float | None = None) -> CostEstimate:
    """Count what there is and what is done; without `tokens_per_second` at the speed of the finished trainings."""
    costs: dict[str, Cost] = {}
    done = []
    for digest, node in trainings.nodes.items():
        run, stores = node.planned.run, node.planned.stores
        steps = count_steps(run, stores)
        num_rows = steps * run.training.global_batch_size
        num_tokens = round(num_rows * mean_tokens_per_row(run, stores))
        costs[digest] = Cost(steps, num_rows, num_tokens, is_done=node.is_finished())
        if node.is_finished() and (summary := read_run(node.find_folder()).summary) is not None:
            done.append(summary)
    if tokens_per_second is None:
        seconds = sum(summary.seconds for summary in done)
        tokens_per_second = sum(summary.num_tokens for summary in done) / seconds if seconds else math.nan
    return CostEstimate(len(trainings.cells), len(trainings.distinct_chains), costs, tokens_per_second)


def estimate_view(estimate: CostEstimate) -> RenderableType:
    """The estimate for a terminal."""
    costs = list(estimate.costs.values())
    left = [cost for cost in costs if not cost.is_done]
    amounts = []
    for part in (costs, left):
        tokens = sum(cost.num_tokens for cost in part)
        counts = (len(part), sum(cost.steps for cost in part), sum(cost.num_rows for cost in part), tokens)
        amounts.append([*map(format_count, counts), format_duration(tokens / estimate.tokens_per_second)])
    columns = columns_of(("trainings", "steps", "rows", "tokens", "time"), amounts)
    table = ResultTable("", [Row("all"), Row("left to do")], columns)
    is_known = math.isfinite(estimate.tokens_per_second)
    speed = f"{format_count(estimate.tokens_per_second)} tokens/s" if is_known else "unknown"
    merged = f"{estimate.num_cells:,} cells, {estimate.num_distinct_cells:,} of them distinct, {len(costs):,} trainings"
    return Group(
        Text(printable(merged), style="bold"),
        table.to_rich(),
        Text(f"speed: {speed} (of finished trainings, or --tokens-per-second); time is one training after the other"),
    )
