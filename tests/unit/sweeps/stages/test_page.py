"""The page of a plan: one axis for all stages, and what a reader must know."""

from pathlib import Path

import numpy as np

from orchestrator.runs.folder import RunFolder
from orchestrator.sweeps.stages import CAVEATS
from orchestrator.sweeps.stages.page import along_figure, write_plan_page
from orchestrator.views.report.html import write_report
from tests.unit.conftest import MakeFakeRun


def test_it_says_where_the_method_fails(fake_run: MakeFakeRun, tmp_path: Path) -> None:
    paths = [fake_run(name, total_steps=4, every=2).path for name in ("one", "two")]
    write_plan_page(tmp_path / "plan.html", "dmt", paths)
    page = (tmp_path / "plan.html").read_text()
    assert "dmt, stage by stage" in page and "Along the plan" in page and "Where this method fails" in page
    assert all(caveat[:60] in page for caveat in CAVEATS)
    write_report(paths, tmp_path / "runs.html")
    assert "Where this method fails" not in (tmp_path / "runs.html").read_text()


def test_stages_follow_each_other_on_one_axis(fake_run: MakeFakeRun) -> None:
    runs = [RunFolder(fake_run(name, total_steps=steps, every=2).path) for name, steps in (("one", 4), ("two", 6))]
    for run in runs:
        run.refresh()
    figure = along_figure(runs)
    assert len(figure.data) == 5
    x, y = figure.data[0].x, figure.data[0].y
    assert list(x) == [0, 2, 4, 4, 4, 6, 8, 10, 10]
    assert np.flatnonzero(np.isnan(y)).tolist() == [3, 8]  # a gap between the stages
    assert [shape.x0 for shape in figure.layout.shapes] == [4]


def test_a_plan_of_one_stage_has_a_page_too(fake_run: MakeFakeRun, tmp_path: Path) -> None:
    write_plan_page(tmp_path / "plan.html", "multi-task", [fake_run(total_steps=4, every=2).path])
    assert "multi-task, stage by stage" in (tmp_path / "plan.html").read_text()
