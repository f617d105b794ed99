"""What keeps a run from being evaluated is told before a model is loaded, and scores reach report and card."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.benchmarks import harness
from orchestrator.benchmarks.driver import evaluate
from orchestrator.export.driver import model_card
from orchestrator.runs.folder import RunFolder
from orchestrator.views.report.comparison import comparison_table
from orchestrator.views.report.html import write_report
from tests.unit.benchmarks.scores import scored
from tests.unit.conftest import FakeRun, MakeFakeRun

QUIET = Console(file=io.StringIO())


def opened(run: FakeRun) -> RunFolder:
    folder = RunFolder(run.path)
    folder.refresh()
    return folder


def test_what_cannot_be_evaluated_is_told(fake_run: MakeFakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fake_run(total_steps=40, every=20).path
    with pytest.raises(ValueError, match="model: there is no such model"):
        evaluate(run, ["gsm8k"], QUIET)
    (run / "model").mkdir()
    with pytest.raises(ValueError, match="there is no best/: it was removed"):
        evaluate(run, ["gsm8k"], QUIET, is_best=True)
    with pytest.raises(ValueError, match="--tasks names no task"):
        evaluate(run, [], QUIET)
    (run / "tasks.json").write_text("[")
    with pytest.raises(ValueError, match=r"tasks\.json is damaged"):
        evaluate(run, ["gsm8k"], QUIET)
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'raymix\[evaluate\]'"):
        evaluate(run, ["gsm8k"], QUIET)
    (run / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"the run has not finished: it has no summary\.json$"):
        evaluate(run, ["gsm8k"], QUIET)


def test_the_report_has_table_and_plot(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=40, every=20)
    write_report([run.path], run.path / "report.html")
    assert "Benchmarks" not in (run.path / "report.html").read_text()
    scored(run, 0.25, 0.75)
    write_report([run.path], run.path / "report.html")
    page = (run.path / "report.html").read_text()
    assert "<th>gsm|8k<small>acc</small></th><td>10</td><td>5</td>" in page
    assert '<td>0.250 \u00b10.010</td><td>0.750 \u00b10.010</td><td class="better">+0.500</td>' in page
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    base, result = json.loads(found.group(1))[0]["data"]
    assert (base["name"], base["x"], base["error_x"]["array"]) == ("base", [0.25], [0.01])
    assert (result["name"], result["x"], result["error_x"]["array"]) == ("result", [0.75], [0.01])


def test_runs_are_compared_by_their_results(fake_run: MakeFakeRun, tmp_path: Path) -> None:
    runs = [fake_run(name, total_steps=40, every=20) for name in ("first", "second", "third")]
    scored(runs[0], 0.25, 0.75)
    scored(runs[1], 0.25, 0.5)
    console = Console(file=io.StringIO(), width=120)
    console.print(comparison_table([run.path for run in runs]))
    assert isinstance(console.file, io.StringIO)
    text = " ".join(console.file.getvalue().split())
    assert "gsm|8k: acc 0.750 \u00b10.010 (+0.500) 0.500 \u00b10.010 (+0.250) - " in text
    write_report([run.path for run in runs], tmp_path / "comparison.html")
    page = (tmp_path / "comparison.html").read_text()
    assert "<strong>0.750 \u00b10.010</strong><small> (+0.500)</small>" in page
    assert "<strong>0.500 \u00b10.010" not in page
    assert 'aria-label="Benchmarks Scores from 0 to 1, higher is better"' in page and "Benchmarks: the result" in page


def test_the_card_has_the_scores_of_the_model_that_is_given_away(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=40, every=20)
    assert "Benchmarks" not in model_card(opened(run), "merged", is_best=False, base="Qwen/Qwen2.5-0.5B")
    scored(run, 0.25, 0.75, model="model", limit=10)
    scored(run, 0.25, 0.5, model="best")
    card = model_card(opened(run), "merged", is_best=False, base="Qwen/Qwen2.5-0.5B")
    assert (
        r"| gsm\|8k | 10 (the first 10 of each task) | 5 | acc | 0.250 ±0.010 | 0.750 ±0.010 | +0.500 |"
        in card.splitlines()
    )
    assert "conversion" not in card and card.count("gsm") == 1
    best = model_card(opened(run), "bf16", is_best=True, base="Qwen/Qwen2.5-0.5B")
    assert r"| gsm\|8k | 10 | 5 | acc | 0.250 ±0.010 | 0.500 ±0.010 | +0.250 |" in best.splitlines()
    assert best.count("gsm") == 1 and "with standard errors, before the conversion to bfloat16." in best


def test_scores_that_come_later_are_seen(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=40, every=20)
    folder = opened(run)
    assert folder.tasks == [] and not folder.refresh()
    scored(run, 0.25, 0.75)
    assert folder.refresh() and [score.task for score in folder.tasks] == ["gsm|8k"]
    assert not folder.refresh()
