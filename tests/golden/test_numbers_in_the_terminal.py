"""Numbers of what verbs print at their end: tables of runs, sweeps, plans and benchmarks.

They are compared with those of earlier runs, and scripts cut them out of the output.
"""

from pathlib import Path

from rich.console import RenderableType

from orchestrator.check.driver import print_plan
from orchestrator.prepare.detection.driver import distribution_view
from orchestrator.probe.driver import table as probe_table
from orchestrator.sweeps.coarse.page import table as coarse_table
from orchestrator.sweeps.compare.page import table as compare_table
from orchestrator.sweeps.study.driver import estimate_study, estimate_view
from orchestrator.sweeps.tune.page import MAX_ROWS
from orchestrator.sweeps.tune.page import table as search_table
from orchestrator.views.report.benchmarks import scores_table
from orchestrator.views.report.comparison import comparison_table
from orchestrator.views.summary import summary_view
from tests.golden.finished import (
    benchmarked,
    checked_plan,
    coarse_result,
    compared,
    detected,
    finished_run,
    finished_study,
    half_run,
    probed,
    searched,
)
from tests.golden.recorded import check_recorded
from tests.golden.shown import read_lines, read_view, wide_console

WHY = "The same files would be shown with other numbers."


def check_view(name: str, view: RenderableType) -> None:
    check_recorded("terminal_numbers", name, read_view(view), WHY)


def test_end_of_a_run(tmp_path: Path) -> None:
    check_view("run", summary_view(finished_run(tmp_path, "one", seed=1)))


def test_several_runs(tmp_path: Path) -> None:
    runs = [finished_run(tmp_path, "one", seed=1), finished_run(tmp_path, "two", seed=2), half_run(tmp_path)]
    check_view("several runs", comparison_table(runs))


def test_comparison(tmp_path: Path) -> None:
    check_view("comparison", compare_table(compared(tmp_path)).to_rich())


def test_search() -> None:
    check_view("search", search_table(searched()).to_rich(MAX_ROWS))


def test_coarse_search() -> None:
    check_view("coarse search", coarse_table(coarse_result()).to_rich())


def test_estimate_of_a_study(tmp_path: Path) -> None:
    _, trainings = finished_study(tmp_path)
    check_view("estimate of a study", estimate_view(estimate_study(trainings)))


def test_detection() -> None:
    check_view("detection", distribution_view(detected()))


def test_probe() -> None:
    check_view("probe", probe_table(probed()).to_rich())


def test_benchmarks() -> None:
    check_view("benchmarks", scores_table(benchmarked()).to_rich())


def test_plan() -> None:
    console = wide_console()
    print_plan(checked_plan(), console)
    check_recorded("terminal_numbers", "plan", read_lines(console), WHY)
