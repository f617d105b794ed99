"""tasks.json: what the harness said of both models, on which terms, and nothing twice."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.runs.benchmark_record import MetricScores, Score, TaskScores, add_scores, asked_for, scores_from
from orchestrator.views.report.benchmarks import scores_table
from tests.unit.benchmarks.scores import harness_results

BASE = harness_results(
    sums={"exact_match,strict": 0.25, "exact_match_stderr,strict": 0.1, "loss,none": 2.0, "loss_stderr,none": "N/A"}
)
RESULT = harness_results(
    sums={"exact_match,strict": 0.75, "exact_match_stderr,strict": 0.1, "loss,none": 1.5, "loss_stderr,none": "N/A"}
)


def record(task: str = "sums", result: float = 0.5, **terms: Any) -> TaskScores:
    metrics = {"acc": MetricScores(base=Score(value=0.5), result=Score(value=result), is_higher_better=True)}
    return TaskScores(task=task, harness="0.4.13", metrics=metrics, **terms)


def test_both_models_are_recorded_with_their_terms(tmp_path: Path) -> None:
    (sums,) = scores_from(BASE, RESULT, "0.4.13", {"model": "best", "limit": 10, "chat": False})
    add_scores(tmp_path, [sums])
    written = json.loads((tmp_path / "tasks.json").read_text())
    assert written == {
        "tasks": [
            {
                "task": "sums",
                "group": None,
                "model": "best",
                "limit": 10,
                "chat": False,
                "num_samples": 10,
                "num_fewshot": 5,
                "version": "3.0",
                "harness": "0.4.13",
                "metrics": {
                    "exact_match, strict": {
                        "base": {"value": 0.25, "stderr": 0.1},
                        "result": {"value": 0.75, "stderr": 0.1},
                        "is_higher_better": True,
                    },
                    "loss": {
                        "base": {"value": 2.0, "stderr": None},
                        "result": {"value": 1.5, "stderr": None},
                        "is_higher_better": False,
                    },
                },
            }
        ]
    }


def test_what_is_no_number_is_none() -> None:
    (sums,) = scores_from(
        harness_results(sums={"loss,none": float("inf")}), harness_results(sums={"loss,none": float("nan")}), "1", {}
    )
    assert sums.metrics["loss"].base.value is None and sums.metrics["loss"].result.value is None
    assert sums.metrics["loss"].change is None and sums.metrics["loss"].verdict == "same"


def test_a_group_stands_for_its_tasks(tmp_path: Path) -> None:
    both = []
    for value in (0.5, 0.75):
        results = harness_results(**{name: {"acc,none": value} for name in ("biology", "law", "mmlu", "alone")})
        results["group_subtasks"] = {"mmlu": ["biology", "law"], "empty": ["alone"]}
        results["results"]["empty"] = {"name": "empty", "alias": "empty"}
        both.append(results)
    records = scores_from(both[0], both[1], "1", {})
    assert {score.task for score in records} == {"mmlu", "biology", "law", "alone"}
    assert {score.task for score in asked_for(records)} == {"mmlu", "alone"}, "a group without a mean hides nothing"


def test_a_second_evaluation_adds_and_replaces(tmp_path: Path) -> None:
    add_scores(tmp_path, [record(result=0.1), record(limit=10, result=0.2)])
    held = add_scores(tmp_path, [record("other"), record(result=0.9), record(chat=True), record(model="best")])
    assert [score.label for score in held] == ["sums", "sums (first 10)", "other", "sums (chat)", "sums (best)"]
    assert [score.metrics["acc"].result.value for score in held[:2]] == [0.9, 0.2]
    assert held == add_scores(tmp_path, [])


def test_a_damaged_file_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "tasks.json").write_text('{"tasks": [{')
    with pytest.raises(ValueError, match=r"tasks\.json is damaged .*move it away"):
        add_scores(tmp_path, [record()])
    assert (tmp_path / "tasks.json").read_text() == '{"tasks": [{'


@pytest.mark.parametrize(
    ("base", "result", "is_higher_better", "verdict"),
    [
        ((0.5, 0.02), (0.6, 0.02), True, "better"),
        ((0.5, 0.02), (0.6, 0.02), False, "worse"),
        ((0.6, 0.02), (0.5, 0.02), True, "worse"),
        ((0.5, 0.05), (0.6, 0.05), True, "same"),  # 0.1 is less than 2 x 0.071
        ((0.5, None), (0.501, None), True, "better"),
        ((0.5, None), (0.5, None), True, "same"),
        ((0.5, None), (0.6, None), None, "same"),
    ],
)
def test_a_change_counts_beyond_its_noise(
    base: tuple[float, float], result: tuple[float, float], is_higher_better: bool | None, verdict: str
) -> None:
    base_score, result_score = (Score(value=value, stderr=stderr) for value, stderr in (base, result))
    assert MetricScores(base=base_score, result=result_score, is_higher_better=is_higher_better).verdict == verdict


def test_the_table_says_it_all_and_steers_nothing() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(
        scores_table(
            [*scores_from(BASE, RESULT, "1", {"limit": 10}), record("[red]\x1b]0;", num_samples=1234)]
        ).to_rich()
    )
    assert isinstance(console.file, io.StringIO)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert "sums (first 10) exact_match, strict 10 0.250 \u00b10.100 0.750 \u00b10.100 +0.500" in lines
    assert "sums (first 10) loss 10 2.000 1.500 -0.500" in lines
    assert r"[red]\x1b]0; acc 1,234 0.500 0.500 +0.000" in lines
