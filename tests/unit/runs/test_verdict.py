"""What is said of a run, by losses that are planted: the verdict, its sentence, and what became of each domain."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.export.driver import find_result
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.records import RunSummary
from orchestrator.runs.summary import summarise, write_summary
from orchestrator.views.summary import HARMFUL, IN_A_WORD, summary_view, verdict_lines
from tests.unit.conftest import FakeRun
from workers.contracts import DomainWeights
from workers.events import log_event

DOMAINS = ("math", "law")
EVERY = 10
Losses = Sequence[Mapping[str, float]]


def planted(folder: Path, losses: Losses, name: str = "run", train: Sequence[float] = (), **config: Any) -> FakeRun:
    """A run of ten steps an evaluation, with these losses at them, step 0 first; `train`: its training losses."""
    domains = tuple(losses[0])
    run = FakeRun(folder / name, domains, EVERY * (len(losses) - 1), EVERY, seed=0)
    settings = json.loads((run.path / "config.json").read_text())
    settings["training"]["learning_rate"] = 0.01
    (run.path / "config.json").write_text(json.dumps(settings | config))
    run.write_weights(effective_step=1)
    run.write_evaluation(0, dict(losses[0]))
    for number, measured in enumerate(losses[1:], start=1):
        for step in range((number - 1) * EVERY + 1, number * EVERY + 1):
            line = run.metric_line(step)
            if train:
                line["domain_loss_nats"] = dict.fromkeys(domains, train[number - 1])
            run.append("metrics.jsonl", line)
        run.write_evaluation(number * EVERY, dict(measured))
        run.change_shares(number * EVERY + 1)  # as a controller does, after the last evaluation too
    return run


def finished(run: FakeRun) -> tuple[RunFolder, RunSummary]:
    write_summary(run.path, dict.fromkeys(run.domains, 0))
    folder = RunFolder(run.path)
    folder.refresh()
    assert folder.summary is not None
    return folder, folder.summary


def both(*pairs: tuple[float, float]) -> Losses:
    return [dict(zip(DOMAINS, pair, strict=True)) for pair in pairs]


CASES = {
    "improved": both((2.0, 3.0), (1.5, 2.5), (1.0, 2.0)),
    "mixed": both((2.0, 3.0), (1.5, 2.9), (1.0, 3.2)),
    "ended_worse": both((2.0, 3.0), (1.5, 2.9), (2.5, 3.2)),
    "worse_than_base": both((2.0, 3.0), (6.5, 7.0), (5.0, 5.5)),
    "unchanged": both((2.0, 3.0), (2.0001, 3.0), (2.0, 2.9999)),
}


@pytest.mark.parametrize("verdict", CASES)
def test_the_verdict_follows_from_the_evaluations(tmp_path: Path, verdict: str) -> None:
    folder, summary = finished(planted(tmp_path, CASES[verdict]))
    assert summary.verdict == verdict
    assert json.loads((folder.path / "summary.json").read_text())["verdict"] == verdict
    first = verdict_lines(folder, summary)[0]
    assert first.startswith(
        {"worse_than_base": "Worse than the base model: "}.get(verdict, IN_A_WORD[summary.verdict].capitalize())
    )  # type: ignore[index]


def test_the_base_is_a_candidate_for_the_best(tmp_path: Path) -> None:
    folder, summary = finished(planted(tmp_path, CASES["worse_than_base"]))
    assert summary.best is not None and (summary.best.step, summary.best.loss_nats) == (0, 2.5)
    assert (summary.mean_loss_nats.best, summary.domains["law"].loss_nats_best) == (2.5, 3.0)
    told = " ".join(verdict_lines(folder, summary))
    assert "at no evaluation was the mean loss below its initial 2.500; it ends at 5.250" in told
    assert "there is no best/" in told and "Both domains end worse than the base model." in told
    causes = told.index("Usual causes, most likely first: a learning rate that is too high")
    assert causes < told.index("training.learning_rate is 0.01") < told.index("template")


@pytest.mark.parametrize(
    ("criterion", "verdict", "step"), [("mean", "mixed", 20), ("worst", "worse_than_base", 0), ("math", "mixed", 20)]
)
def test_the_loss_that_counts_is_the_one_that_best_minimises(
    tmp_path: Path, criterion: str, verdict: str, step: int
) -> None:
    run = planted(tmp_path, both((2.0, 3.0), (1.0, 3.1), (0.5, 3.2)), evaluation={"every": EVERY, "best": criterion})
    folder, summary = finished(run)
    assert (summary.verdict, summary.best and summary.best.step) == (verdict, step)
    word = {"math": "loss of math", "worst": "worst loss", "mean": "mean loss"}[criterion]
    assert word in verdict_lines(folder, summary)[0]


def test_an_evaluation_that_only_equals_the_base_does_not_beat_it(tmp_path: Path) -> None:
    _, summary = finished(planted(tmp_path, both((2.0, 3.0), (2.0, 3.0), (4.0, 3.0))))
    assert (summary.verdict, summary.best and summary.best.step) == ("worse_than_base", 0)


def test_domains_that_end_worse_are_named_the_worst_first(tmp_path: Path) -> None:
    losses = [dict.fromkeys("abcdefgh", 5.0), {name: 5.0 + 0.1 * index - 0.05 for index, name in enumerate("abcdefgh")}]
    losses[1]["a"] = 0.5
    folder, summary = finished(planted(tmp_path, losses))
    assert summary.verdict == "mixed"
    assert [name for name, domain in summary.domains.items() if domain.is_worse_than_base] == list("bcdefgh")
    (line,) = [line for line in verdict_lines(folder, summary) if "end worse" in line]
    assert line.startswith("7 of 8 domains end worse than the base model: h 5.000 to 5.650, g 5.000 to 5.550,")
    assert line.endswith("and 2 more.")


def test_over_fitting_is_told_with_the_passes_over_the_domain(tmp_path: Path) -> None:
    run = planted(tmp_path, both((2.0, 3.0), (1.0, 2.0), (1.2, 1.5), (1.4, 1.0)))
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    folder, summary = finished(run)
    math_domain = summary.domains["math"]
    assert (math_domain.loss_nats_lowest, math_domain.lowest_step, math_domain.is_past_lowest) == (1.0, 10, True)
    assert (math_domain.lowest_epochs, math_domain.epochs) == (lines[9]["epochs"]["math"], lines[29]["epochs"]["math"])
    assert math_domain.is_worse_than_base is False and summary.verdict == "improved"
    assert summary.domains["law"].is_past_lowest is False
    (line,) = [line for line in verdict_lines(folder, summary) if "over-fitting" in line]
    passes, end = f"{lines[9]['epochs']['math']:.1f} epochs", f"{lines[29]['epochs']['math']:.1f} epochs"
    assert f"math 1.000 at step 10 ({passes}), 1.400 at the end ({end})." in line and "law" not in line


def test_a_domain_that_was_lowest_at_the_start_is_not_over_fitted(tmp_path: Path) -> None:
    folder, summary = finished(planted(tmp_path, both((2.0, 3.0), (1.5, 3.5), (1.0, 3.2))))
    law = summary.domains["law"]
    assert (law.is_worse_than_base, law.is_past_lowest, law.lowest_step, law.lowest_epochs) == (True, False, 0, 0.0)
    assert not any("over-fitting" in line for line in verdict_lines(folder, summary))


def test_a_loss_that_is_not_finite_at_the_end_is_divergence(tmp_path: Path) -> None:
    folder, summary = finished(planted(tmp_path, both((2.0, 3.0), (1.0, 2.0), (1.0, math.nan))))
    assert (summary.verdict, summary.not_finite, summary.best and summary.best.step) == ("diverged", ["law"], 10)
    told = " ".join(verdict_lines(folder, summary))
    assert (
        "the mean loss was 2.500 at the start and is not finite at the end. The model in best/ is from step 10." in told
    )
    assert "Not finite at the last evaluation: the loss of law." in told


def test_where_no_later_evaluation_is_finite_the_base_is_the_best(tmp_path: Path) -> None:
    _, summary = finished(planted(tmp_path, both((2.0, 3.0), (math.inf, 2.0), (1.0, math.nan))))
    assert (summary.verdict, summary.best and summary.best.step) == ("worse_than_base", 0)


def test_a_training_loss_that_rises_for_good_is_divergence(tmp_path: Path) -> None:
    losses = both((7.0, 7.0), (3.0, 3.0), (2.0, 2.0), (5.0, 5.0), (5.0, 5.0))
    folder, summary = finished(planted(tmp_path, losses, train=(4.0, 2.0, 5.5, 5.0)))
    assert summary.verdict == "diverged" and summary.divergence is not None
    rise = summary.divergence
    assert (rise.loss_nats_lowest, rise.loss_nats_end) == (2.0, 5.0) and 10 < rise.step <= 20
    assert (
        f"The training loss rose and did not recover: 2.000 around step {rise.step}, 5.000 at the end."
        in verdict_lines(folder, summary)
    )


def test_a_run_without_an_evaluation_of_the_base_is_not_judged(tmp_path: Path) -> None:
    run = planted(tmp_path, CASES["improved"])
    (run.path / "feedback" / "00000000.json").unlink()
    _, summary = finished(run)
    assert (summary.verdict, summary.best and summary.best.step) == ("not_measured", 20)
    assert all(domain.is_worse_than_base is None for domain in summary.domains.values())


def test_a_run_that_began_from_another_is_compared_with_that_ones_model(tmp_path: Path) -> None:
    run = planted(tmp_path, CASES["worse_than_base"], start={"run": "/somewhere/stages/first-1a2b"})
    folder, summary = finished(run)
    assert summary.started_from == "/somewhere/stages/first-1a2b"
    told = " ".join(verdict_lines(folder, summary))
    assert told.startswith("Worse than the model of first-1a2b: ") and "base model:" not in told


def test_the_final_share_is_one_that_was_trained_with(tmp_path: Path) -> None:
    run = planted(tmp_path, CASES["improved"])
    versions = [DomainWeights.model_validate_json(path.read_bytes()) for path in sorted(run.path.glob("weights/*"))]
    assert versions[-1].effective_step == 21 and versions[-2].effective_step == 11
    _, summary = finished(run)
    assert {name: domain.share_final for name, domain in summary.domains.items()} == versions[-2].shares
    assert summary.weights_versions == 3


def test_what_ended_a_run_by_a_loss_that_is_not_finite_is_its_verdict_until_it_is_tried_again(tmp_path: Path) -> None:
    run = planted(tmp_path, CASES["improved"])
    folder = RunFolder(run.path)
    log_event(run.path, 0, "attempt", "attempt 1 starts from the base model")
    log_event(run.path, 21, "diverged", "step 21: the training loss of ['law'] is not finite")
    folder.refresh()
    assert summarise(folder).verdict == "diverged"
    assert verdict_lines(folder, summarise(folder))[0] == (
        "Diverged: step 21: the training loss of ['law'] is not finite"
    )
    log_event(run.path, 0, "attempt", "attempt 2 resumes after step 20")
    folder.refresh()
    assert summarise(folder).verdict == "improved" and verdict_lines(folder, summarise(folder)) == []


@pytest.mark.parametrize("verdict", CASES)
def test_while_a_run_goes_on_only_harm_is_told(tmp_path: Path, verdict: str) -> None:
    folder = RunFolder(planted(tmp_path, CASES[verdict]).path)
    folder.refresh()
    lines = verdict_lines(folder, summarise(folder))
    if verdict in HARMFUL:
        assert lines[0].startswith(
            "So far, at the evaluation of step 20, the model gets worse: the mean loss was 2.500"
        )
    elif verdict == "mixed":
        assert lines == [
            "So far, at the evaluation of step 20, 1 of 2 domains is worse than the base model: law 3.000 to 3.200."
        ]
    else:
        assert lines == []


def test_a_summary_of_an_older_version_is_read_and_nothing_is_made_up(tmp_path: Path) -> None:
    run = planted(tmp_path, CASES["worse_than_base"])
    run.write_summary()  # as it was before there were verdicts
    folder = RunFolder(run.path)
    folder.refresh()
    assert folder.summary is not None and folder.summary.verdict is None
    assert verdict_lines(folder, folder.summary) == []


def test_the_terminal_says_it_in_lines_that_fit(tmp_path: Path) -> None:
    run = planted(tmp_path, CASES["worse_than_base"])
    finished(run)
    console = Console(file=io.StringIO(), width=80)
    console.print(summary_view(run.path))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "Worse than the base model: at no evaluation was the mean loss below its initial 2.500" in " ".join(
        text.split()
    )


@pytest.mark.parametrize(
    ("verdict", "best", "words"),
    [
        ("worse_than_base", "mean", r"no evaluated step was better than the base model \(mean loss 2.500\)"),
        ("improved", None, r"evaluation.best is null"),
        ("improved", "mean", r"it was removed, or the run keeps no models"),
    ],
)
def test_why_there_is_no_best_model(tmp_path: Path, verdict: str, best: str | None, words: str) -> None:
    run = planted(tmp_path, CASES[verdict], evaluation={"every": EVERY, "best": best})
    finished(run)
    (run.path / "model").mkdir()
    with pytest.raises(ValueError, match=words):
        find_result(run.path, True, Console())
    assert find_result(run.path, False, Console())[1] == run.path / "model"


def test_names_are_text_wherever_a_verdict_is_told(tmp_path: Path) -> None:
    hostile = "[bold]x\x1b[2J"
    run = planted(tmp_path, [{hostile: 1.0, "b": 3.0}, {hostile: 2.0, "b": 1.0}])
    finished(run)
    console = Console(file=io.StringIO(), width=200)
    console.print(summary_view(run.path))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "[bold]x\\x1b[2J 1.000 to 2.000" in text and "\x1b" not in text


def test_a_run_that_ends_above_its_best_names_the_folder_of_the_better_model(tmp_path: Path) -> None:
    folder, summary = finished(planted(tmp_path, both((2.0, 3.0), (1.0, 2.0), (1.4, 2.5))))
    assert summary.verdict == "improved" and "best/" not in verdict_lines(folder, summary)[0]  # it was removed
    (folder.path / "best").mkdir(exist_ok=True)
    first = verdict_lines(folder, summary)[0]
    assert first.endswith(" It was lowest at step 10, 1.500; that model is in best/.")
    ended_best, summary = finished(planted(tmp_path, both((2.0, 3.0), (1.4, 2.5), (1.0, 2.0)), name="other"))
    (ended_best.path / "best").mkdir(exist_ok=True)
    assert "best/" not in verdict_lines(ended_best, summary)[0]


def test_the_end_in_the_terminal_says_which_evaluation_is_the_best(tmp_path: Path) -> None:
    for name, losses, words in (
        ("later", both((2.0, 3.0), (1.0, 2.0), (1.4, 2.5)), "Best is the evaluation at step 10."),
        ("base", CASES["worse_than_base"], "Best is the base."),
    ):
        folder, _ = finished(planted(tmp_path, losses, name=name))
        console = Console(file=io.StringIO(), width=200)
        console.print(summary_view(folder.path))
        assert words in console.file.getvalue()  # type: ignore[attr-defined]
