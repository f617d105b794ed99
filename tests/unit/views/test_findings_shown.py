"""The counts that a run keeps, in its report; findings in the terminal."""

import io
import re
from pathlib import Path

from rich.console import Console

from orchestrator.runs.folder import RunFolder
from orchestrator.runs.records import DataRecord, DomainCounts, Finding, StoreCounts
from orchestrator.views.report.html import write_report
from orchestrator.views.report.run_figures import data_sections
from orchestrator.views.terminal import print_findings
from tests.unit.conftest import MakeFakeRun
from workers.data.report import Report

STORE = StoreCounts(num_examples=20, num_distinct=5, num_prompts=5, num_rows=3, num_tokens=900, num_targets=300)
COUNTS = DomainCounts(
    train=STORE,
    eval=STORE.model_copy(update={"num_prompts": 7}),
    train_files=Report(num_rows=1_000, num_too_long=13, num_tokens_cut=4_321, dropped={"reasoning": 2}),
    eval_files=Report(num_rows=500, num_too_long=4, num_excluded=21, num_not_chosen=22, num_targets_cut=23),
    num_leaked_prompts=6,
)


def test_the_report_has_a_table_of_what_became_of_the_data(fake_run: MakeFakeRun) -> None:
    run = fake_run(domains=("math", "law"), total_steps=20)
    measured = COUNTS.model_copy(update={"train": None, "num_leaked_prompts": 0})
    record = DataRecord(domains={"math": COUNTS, "law": measured}, findings=[])
    (run.path / "data.json").write_text(record.model_dump_json())
    folder = RunFolder(run.path)
    assert folder.refresh() and folder.data == record and not folder.refresh()
    (section,) = data_sections(folder)
    assert section.table is not None
    columns = {column.heading: column.cells for column in section.table.columns}
    shown = [{heading: cells[place].text for heading, cells in columns.items()} for place in (0, 1)]
    assert [(row.label, row.detail) for row in section.table.rows] == [("math", ""), ("law", "only measured")]
    assert (shown[0]["Rows read"], shown[0]["Too long"], shown[0]["Tokens cut"]) == ("1,500", "17", "4,321")
    left_out = ("Cannot be used", "Excluded", "Not chosen", "Targets cut")
    assert [shown[0][heading] for heading in left_out] == ["0", "21", "22", "23"]
    assert (shown[0]["Trained examples"], shown[0]["Repeats"], shown[1]["Repeats"]) == ("20", "15", "-")
    assert (shown[0]["Dropped by the template"], shown[0]["Held-out prompts"]) == ("reasoning 2", "7")
    leaked = columns["Of these in training data"]
    assert [(cell.text, cell.style) for cell in leaked] == [("6", "worse"), ("0", "same")]
    write_report([run.path], run.path / "report.html")
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "<h2>Data</h2>" in page and "<td>4,321</td>" in page


def test_a_run_without_counts_has_no_such_table(fake_run: MakeFakeRun) -> None:
    run = RunFolder(fake_run(total_steps=20).path)
    run.refresh()
    assert data_sections(run) == []


def test_a_finding_is_one_line_where_nobody_looks_and_text_everywhere(tmp_path: Path) -> None:
    message = "10 rows [red]cannot[/red] be used: " + "long " * 40 + "\x1b[2J"
    finding = Finding(severity="warning", kind="bad_rows", where="domains.a.b", message=message)
    plain = Finding(severity="note", kind="budget", where="training", message="training.epochs 1 is little")
    output = io.StringIO()
    print_findings(Console(file=output, width=40), [finding, plain])
    first, second = output.getvalue().splitlines()
    assert first.startswith("a.b: 10 rows [red]cannot[/red] be used: long") and first.endswith("\\x1b[2J")
    assert second == "training.epochs 1 is little"
    output = io.StringIO()
    print_findings(Console(file=output, width=40, force_terminal=True, color_system="standard"), [finding, plain])
    assert re.match(r"\x1b\[33ma\.b: 10 rows", output.getvalue()) and "\x1b[2J" not in output.getvalue()
