"""From finished stages on disk to rows, tables and the page."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.sweeps.study.curves import read_measured_losses
from orchestrator.sweeps.study.grid import Trainings, build_cells, plan_trainings
from orchestrator.sweeps.study.page import write_study_page
from orchestrator.sweeps.study.results import collect_results, write_results
from tests.unit.conftest import FakeRun
from tests.unit.sweeps.stages.staged import SIZES, config, fake_stores

STUDY = {
    "specialised": ["math"],
    "general": ["general"],
    "k": [0.25, 0.5, 1],
    "seeds": [0, 1],
    "grids": ["single", "mix"],
    "strategies": ["multi_task", "dmt"],
    "num_resamples": 100,
}
ROWS = {"row": [2, 0, 2], "example": [1, 0, 0], "num_tokens": [30, 10, 20]}


def finish(folder: Path, seed: int) -> None:
    """A finished run in a stage's folder, with made-up losses."""
    run = FakeRun(folder, list(SIZES), total_steps=4, every=2, seed=seed)
    run.write_start()
    run.write_steps(1, 4)
    run.write_summary()
    losses = {name: ROWS | {"loss_sum_nats": [3.0 * (seed + 1), 1.0, 2.0 + seed]} for name in SIZES}
    (folder / "evaluation.json").write_text(json.dumps({"domains": losses}))


@pytest.fixture
def trainings(tmp_path: Path) -> Trainings:
    return plan_trainings(build_cells(config(tmp_path, study=STUDY)), fake_stores)


def finish_all(trainings: Trainings) -> None:
    for number, node in enumerate(trainings.nodes.values()):
        finish(node.find_folder(), seed=number)


def test_a_cell_without_all_of_its_stages_has_no_row(trainings: Trainings) -> None:
    assert collect_results(trainings) == []
    first = [node for node in trainings.nodes.values() if node.parent is None]
    for number, node in enumerate(first):
        finish(node.find_folder(), seed=number)
    rows = collect_results(trainings)
    assert {row.group for row in rows} == {"single", "mix", "multi_task"}
    assert len(rows) == 2 * (3 * 2 + 3 + 1)


def test_amounts_are_of_all_stages_and_losses_of_the_last(trainings: Trainings) -> None:
    finish_all(trainings)
    rows = collect_results(trainings)
    assert len(rows) == len(trainings.cells)
    dmt = next(row for row in rows if row.group == "dmt")
    assert dmt.num_stages == 2 and dmt.steps == 8 and dmt.steps_by_stage == [4, 4]
    assert dmt.num_tokens == 8 * 8192 and dmt.num_rows == 8 * 128
    last = json.loads((dmt.folders[-1] / "summary.json").read_text())["domains"]
    assert dmt.loss_nats == {name: domain["loss_nats_end"] for name, domain in last.items()}
    first = json.loads((dmt.folders[0] / "summary.json").read_text())["domains"]
    assert dmt.loss_nats_base == {name: domain["loss_nats_start"] for name, domain in first.items()}


def test_what_is_forgotten_is_counted_from_the_single_run_of_the_same_seed(trainings: Trainings) -> None:
    finish_all(trainings)
    rows = {row.cell: row for row in collect_results(trainings)}
    for seed in (0, 1):
        single, dmt = rows[f"single math k=1 seed={seed}"], rows[f"dmt math k=1/4 seed={seed}"]
        assert single.forgotten_nats["math"] == 0.0
        expected = (dmt.loss_nats["math"] or 0) - (single.loss_nats["math"] or 0)
        assert dmt.forgotten_nats["math"] == pytest.approx(expected)
        assert dmt.forgotten_nats["code"] is None  # nothing was trained on code alone


def test_both_tables_hold_every_row(trainings: Trainings, tmp_path: Path) -> None:
    finish_all(trainings)
    rows = collect_results(trainings)
    write_results(tmp_path, rows)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    with (tmp_path / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(lines) == len(table) == len(rows)
    assert float(table[0]["loss_nats/math"]) == lines[0]["loss_nats"]["math"]
    assert [int(entry["steps"]) for entry in table] == [row.steps for row in rows]


def test_the_page_shows_the_curves_and_says_where_the_method_fails(trainings: Trainings, tmp_path: Path) -> None:
    finish_all(trainings)
    settings = config(study=STUDY)
    assert settings.study is not None
    write_study_page(tmp_path / "study.html", "composition", settings.study, collect_results(trainings), 99)
    page = (tmp_path / "study.html").read_text()
    for text in ("Single source against mixture", "Specialised against general ability", "not finished", "confounded"):
        assert text in page
    assert "does not dominate" in page
    start = page.index('id="figures">') + len('id="figures">')
    figures: list[dict[str, Any]] = json.loads(page[start : page.index("</script>", start)])
    names = [[trace.get("name") for trace in figure["data"]] for figure in figures]
    assert [name for name in names[0] if name] == ["single", "mix"]
    assert {"multi task", "dmt 1/4", "dmt 1/2", "dmt 1"} <= set(names[-1])


def test_a_page_without_results_is_still_a_page(tmp_path: Path) -> None:
    settings = config(study=STUDY)
    assert settings.study is not None
    write_study_page(tmp_path / "study.html", "composition", settings.study, [], 10)
    assert "not finished: 0 of 10 cells" in (tmp_path / "study.html").read_text()


def test_runs_measured_on_other_examples_are_not_compared(trainings: Trainings, tmp_path: Path) -> None:
    finish_all(trainings)
    rows = collect_results(trainings)
    content = json.loads((rows[-1].folders[-1] / "evaluation.json").read_text())
    content["domains"]["math"]["num_tokens"] = [30, 10, 21]
    (rows[-1].folders[-1] / "evaluation.json").write_text(json.dumps(content))
    assert read_measured_losses(rows[-1].folders[-1], "math")[1].tolist() == [10, 21, 30]
    study = config(study=STUDY).study
    assert study is not None
    with pytest.raises(ValueError, match="measured on other examples"):
        write_study_page(tmp_path / "study.html", "composition", study, rows, 10)
