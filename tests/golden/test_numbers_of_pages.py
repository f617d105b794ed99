"""Numbers and titles of every page that is written: of a run, of several, and of each kind of sweep.

A page is read beside an older one, and its figures are quoted. A number that changes for the same files is a fault; so
is a column or a plot that is gone. Titles are recorded apart from numbers, as they may be reworded.
"""

from pathlib import Path

from orchestrator.prepare.detection.driver import write_page as write_detection_page
from orchestrator.probe.driver import _page
from orchestrator.sweeps.coarse.page import write_search_page as write_coarse_page
from orchestrator.sweeps.compare.page import write_comparison
from orchestrator.sweeps.stages.page import write_plan_page
from orchestrator.sweeps.study.page import write_study_page
from orchestrator.sweeps.study.results import collect_results
from orchestrator.sweeps.tune.page import write_search_page
from orchestrator.views.report.html import write_report
from tests.golden.finished import (
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
from tests.golden.shown import read_page


def check_page(name: str, html: str) -> None:
    numbers, titles = read_page(html)
    check_recorded("page_numbers", name, numbers, "The same files would be shown with other numbers.")
    check_recorded("page_titles", name, titles, "A heading, a column or a line of a plot is another, or gone.")


def test_page_of_a_run(tmp_path: Path) -> None:
    write_report([finished_run(tmp_path, "one", seed=1)], tmp_path / "page.html")
    check_page("run", (tmp_path / "page.html").read_text())


def test_page_of_a_run_under_way(tmp_path: Path) -> None:
    write_report([half_run(tmp_path)], tmp_path / "page.html")
    check_page("run under way", (tmp_path / "page.html").read_text())


def test_page_of_several_runs(tmp_path: Path) -> None:
    runs = [finished_run(tmp_path, "one", seed=1), finished_run(tmp_path, "two", seed=2), half_run(tmp_path)]
    write_report(runs, tmp_path / "page.html")
    check_page("several runs", (tmp_path / "page.html").read_text())


def test_page_of_a_comparison(tmp_path: Path) -> None:
    write_comparison(compared(tmp_path), tmp_path / "page.html")
    check_page("comparison", (tmp_path / "page.html").read_text())


def test_page_of_a_search(tmp_path: Path) -> None:
    write_search_page(searched(), tmp_path / "page.html")
    check_page("search", (tmp_path / "page.html").read_text())


def test_page_of_a_coarse_search(tmp_path: Path) -> None:
    write_coarse_page("where", coarse_result(), tmp_path / "page.html")
    check_page("coarse search", (tmp_path / "page.html").read_text())


def test_page_of_a_study(tmp_path: Path) -> None:
    settings, trainings = finished_study(tmp_path)
    write_study_page(tmp_path / "page.html", "composition", settings, collect_results(trainings), 99)
    check_page("study", (tmp_path / "page.html").read_text())


def test_page_of_a_plan(tmp_path: Path) -> None:
    stages = [finished_run(tmp_path, "first", seed=1), finished_run(tmp_path, "second", seed=2)]
    write_plan_page(tmp_path / "page.html", "plan", stages)
    check_page("plan", (tmp_path / "page.html").read_text())


def test_page_of_a_detection(tmp_path: Path) -> None:
    write_detection_page(detected(), tmp_path / "page.html")
    check_page("detection", (tmp_path / "page.html").read_text())


def test_page_of_a_probe() -> None:
    check_page("probe", _page(probed()))
