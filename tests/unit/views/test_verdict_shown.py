"""Where the verdict is shown: report, dashboard, comparisons, lists, model card. Always the same sentence."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.cluster.jobs.client import _harm
from orchestrator.dashboard.catalog import Catalog
from orchestrator.dashboard.pages import ComparePage, ListPage, RunPage
from orchestrator.export.driver import model_card
from orchestrator.sweeps.compare.page import table
from orchestrator.sweeps.compare.results import Comparison, RunResult, VariantResult
from orchestrator.views.report.comparison import comparison_table
from orchestrator.views.report.html import run_values, write_report
from orchestrator.views.runs import RunsView
from orchestrator.views.summary import verdict_lines, verdict_sentence
from tests.unit.runs.test_verdict import CASES, both, finished, planted


def printed(view: object, width: int = 400) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("verdict", "kind"), [("worse_than_base", "bad"), ("ended_worse", "bad"), ("mixed", "mixed"), ("improved", "good")]
)
def test_report_and_dashboard_show_every_sentence(tmp_path: Path, verdict: str, kind: str) -> None:
    folder, summary = finished(planted(tmp_path, CASES[verdict]))
    lines = verdict_lines(folder, summary)
    write_report([folder.path], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    snapshot = RunPage(Catalog(tmp_path), "run").look()
    assert snapshot is not None and run_values(folder)["verdict"] == {"kind": kind, "lines": lines}
    for shown in (page, snapshot.parts["verdict"]):
        assert f'<section class="verdict {kind}">' in shown
        assert all(f"<p>{line}</p>" in shown for line in lines)


def test_a_list_of_runs_marks_those_that_do_harm_and_no_others(tmp_path: Path) -> None:
    for verdict in CASES:
        finished(planted(tmp_path, CASES[verdict], name=verdict))
    parts = ListPage(Catalog(tmp_path)).look().parts
    marked = {name for name in CASES if "worse" in parts[f"row:{name}"].replace(f"/run/{name}", "").replace(name, "")}
    assert {name for name in CASES if 'class="worse"' in parts[f"row:{name}"]} == {"worse_than_base", "ended_worse"}
    assert "worse than base" in parts["row:worse_than_base"] and "ended worse" in parts["row:ended_worse"]
    assert "improved" not in marked
    assert _harm(str(tmp_path / "worse_than_base")) == ", worse than base"
    assert _harm(str(tmp_path / "improved")) == _harm(str(tmp_path / "none")) == _harm(None) == ""


def test_comparisons_say_which_run_did_harm(tmp_path: Path) -> None:
    folders = []
    for verdict in ("improved", "worse_than_base"):
        folder, summary = finished(planted(tmp_path, CASES[verdict], name=verdict.replace("_", "-")))
        folders.append(folder.path)
    line = verdict_lines(folder, summary)[0]
    told = printed(comparison_table(folders))
    row = next(row for row in told.splitlines() if row.split()[:1] == ["verdict"])
    assert row.split() == ["verdict", "improved", "worse", "than", "base"]
    assert f"worse-than-base: {line}" in " ".join(told.split())
    assert "improved:" not in told
    write_report(folders, tmp_path / "comparison.html")
    snapshot = ComparePage(Catalog(tmp_path), ["improved", "worse-than-base"]).look()
    assert snapshot is not None
    for page in ((tmp_path / "comparison.html").read_text(), snapshot.parts["table"]):
        assert f"worse-than-base: {line}" in page


def test_a_comparison_tells_of_over_fitting(tmp_path: Path) -> None:
    over_fitted = both((2.0, 3.0), (1.0, 2.0), (1.4, 1.0))
    folders = [finished(planted(tmp_path, over_fitted, name="long"))[0].path]
    folders.append(finished(planted(tmp_path, CASES["improved"], name="short"))[0].path)
    told = " ".join(printed(comparison_table(folders)).split())
    assert "long: Improved: " in told and "a sign of over-fitting: math 1.000 at step 10" in told
    assert "short: " not in told


def test_a_comparison_of_variants_counts_them(tmp_path: Path) -> None:
    verdicts = {"good": ["improved", "improved"], "bad": ["worse_than_base", "improved"], "old": [None, None]}
    variants = {
        label: VariantResult(
            runs=[
                RunResult.model_validate({"seed": seed, "folder": tmp_path, "values": {}, "verdict": verdict})
                for seed, verdict in enumerate(each)
            ],
            means={},
            differences={},
        )
        for label, each in verdicts.items()
    }
    comparison = Comparison(name="c", target=None, baseline="good", domains=[], variants=variants, failed={})
    text = printed(table(comparison).to_rich())
    assert "bad: 1 of 2 worse than base;" in text and "good: " not in text and "old: " not in text


def test_a_trial_that_did_harm_says_so_in_its_line(tmp_path: Path) -> None:
    for verdict, words in (
        ("worse_than_base", "mean loss 5.250, worse than base, "),
        ("improved", "mean loss 1.500, "),
    ):
        folder, _ = finished(planted(tmp_path, CASES[verdict], name=verdict))
        outcome = RunsView(dict, 1, Console(file=io.StringIO()))._outcome(folder)
        assert outcome is not None and outcome.startswith(words) and ("worse" in outcome) == ("worse" in words)


def test_the_card_of_a_model_that_got_worse_says_it(tmp_path: Path) -> None:
    folder, summary = finished(planted(tmp_path, CASES["ended_worse"]))
    folder.config["training"] |= {"strategy": {"type": "full"}, "schedule": "cosine"}
    assert f"**{verdict_sentence(folder, summary)}**" in model_card(folder, "merged", False, "a/b")
    assert "**" not in model_card(folder, "merged", True, "a/b")


def test_the_plot_of_a_finished_run_ends_with_shares_that_were_trained_with(tmp_path: Path) -> None:
    from orchestrator.views.format import color_by_name
    from orchestrator.views.report.figures import shares_figure

    folder, summary = finished(planted(tmp_path, CASES["improved"]))
    figure = shares_figure(folder, color_by_name(folder.domains))
    assert [trace.y[-1] for trace in figure.data] == [domain.share_final for domain in summary.domains.values()]
    assert max(figure.data[0].x) == 20
    snapshot = RunPage(Catalog(tmp_path), "run").look()
    assert snapshot is not None
    assert snapshot.values["shares"] == {name: domain.share_final for name, domain in summary.domains.items()}
