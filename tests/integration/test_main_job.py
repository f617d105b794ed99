"""The main job as a user runs it, and its public files checked against each other."""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.runs.benchmark_record import TaskFile
from orchestrator.runs.records import DataRecord
from tests.integration.plain_scores import PlainModel, write_tasks
from tests.runs import DOMAINS, ROOT, num_lines, raymix, read_lines
from workers.contracts import DomainFeedback, DomainWeights


def load_journal(run: Path) -> tuple[list[DomainWeights], list[DomainFeedback]]:
    weights = [DomainWeights.model_validate_json(p.read_text()) for p in sorted((run / "weights").glob("*.json"))]
    feedback = [DomainFeedback.model_validate_json(p.read_text()) for p in sorted((run / "feedback").glob("*.json"))]
    return weights, feedback


def test_the_weights_are_what_the_formula_gives_on_the_feedback(finished: Path) -> None:
    weights, feedback = load_journal(finished)
    references = json.loads((finished / "reference.json").read_text())["loss_nats"]
    assert [item.step for item in feedback] == [0, 4, 8, 12, 16, 20, 24, 28, 30]
    assert len(weights) == len(feedback) + 1
    shares = dict.fromkeys(DOMAINS, 1 / 3)
    assert weights[0].shares == pytest.approx(shares, abs=1e-9)
    for version, item in zip(weights[1:], feedback, strict=True):
        loss = {name: item.loss_sum_nats[name] / item.num_tokens[name] for name in DOMAINS}
        gamma = {name: max((loss[name] - references[name]) / loss[name], 0.0) for name in DOMAINS}
        raised = {name: shares[name] * (1 + 0.7 * gamma[name]) for name in DOMAINS}
        shares = {name: value / math.fsum(raised.values()) for name, value in raised.items()}
        assert version.shares == pytest.approx(shares, abs=1e-9)
        assert version.effective_step == item.step + 1
    assert max(abs(weights[-1].shares[name] - 1 / 3) for name in DOMAINS) > 0.01


def test_samples_follow_the_version_of_their_step(finished: Path) -> None:
    weights, _ = load_journal(finished)
    steps = read_lines(finished / "metrics.jsonl")
    assert [line["step"] for line in steps] == list(range(1, 31))
    drawn = {(step, name): 0 for step in range(1, 31) for name in DOMAINS}
    for line in read_lines(finished / "samples.jsonl"):
        drawn[line["step"], line["domain"]] += len(line["rows"])
    for line in steps:
        in_force = [w.version for w in weights if w.effective_step <= line["step"]][-1]
        assert line["weights_version"] == in_force
        assert {name: drawn[line["step"], name] for name in DOMAINS} == line["rows"]
        assert sum(line["rows"].values()) == 8


def test_what_became_of_the_data_is_told_once_kept_and_shown(finished: Path) -> None:
    record = DataRecord.model_validate_json((finished / "data.json").read_bytes())
    told = [finding.line for finding in record.findings]
    assert any("held-out prompts are in the training data" in line for line in told)  # law has a hundred questions
    assert any("rows repeat another" in line for line in told)
    events = [(event["kind"], event["message"]) for event in read_lines(finished / "events.jsonl")]
    assert events[: len(told)] == [(finding.kind, finding.line) for finding in record.findings]
    stdout = (finished.parents[1] / "stdout.txt").read_text().splitlines()
    assert [stdout.count(line) for line in told] == [1] * len(told)
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "<h2>Data</h2>" in page and "Of these in training data" in page


def test_the_terminal_shows_no_library(finished: Path) -> None:
    stdout = (finished.parents[1] / "stdout.txt").read_text()
    assert "\x1b" not in stdout
    assert not any(word in stdout for word in ("Traceback", "ray::", "DeepSpeed", "WARNING"))


def test_losses_fall_and_the_summary_says_so(finished: Path) -> None:
    _, feedback = load_journal(finished)
    summary = json.loads((finished / "summary.json").read_text())
    for name in DOMAINS:
        assert feedback[-1].loss_nats(name) < feedback[0].loss_nats(name)
        assert summary["domains"][name]["loss_nats_end"] == pytest.approx(feedback[-1].loss_nats(name))
        assert summary["domains"][name]["loss_nats_start"] == pytest.approx(feedback[0].loss_nats(name))
    assert summary["steps"] == 30 and summary["weights_versions"] == 10
    assert (finished / "report.html").stat().st_size > 100_000


def test_every_loss_has_its_error_and_every_change_is_paired(finished: Path) -> None:
    """Worked out by leaving out one example after the other, from what is on disk for each of them."""
    _, feedback = load_journal(finished)
    nats: dict[int, dict[str, np.ndarray]] = {}
    for item in feedback:
        with np.load(finished / "evaluations" / f"{item.step:08d}.npz", allow_pickle=False) as file:
            names, domain_E, tokens_E = file["domains"].tolist(), file["domain"], file["num_tokens"].astype(np.int64)
            assert names == list(DOMAINS)
            nats[item.step] = {name: file["loss_sum_nats"][domain_E == d] for d, name in enumerate(names)}
            tokens = {name: tokens_E[domain_E == d] for d, name in enumerate(names)}
    manifests = [json.loads(path.read_text()) for path in finished.parent.glob("token-stores/*/eval/manifest.json")]
    num_held_out = {manifest["domain"]: manifest["num_examples"] for manifest in manifests}
    for item in feedback:
        for name in DOMAINS:
            ours, sizes = nats[item.step][name], tokens[name]
            assert item.num_examples[name] == len(ours) > 1 and item.num_held_out[name] == num_held_out[name]
            assert item.loss_sum_nats[name] == pytest.approx(ours.sum(), rel=1e-12)
            assert item.num_tokens[name] == sizes.sum()
            assert item.standard_error_nats[name] == pytest.approx(jackknife(ours, sizes), rel=1e-9)
            left_out = math.sqrt(1 - len(ours) / num_held_out[name])
            assert item.sampling_error_nats[name] == pytest.approx(left_out * jackknife(ours, sizes), rel=1e-9)
    for before, item in itertools.pairwise(feedback):
        for name in DOMAINS:
            for change, earlier in ((item.change_from_first, 0), (item.change_from_previous, before.step)):
                difference = nats[item.step][name] - nats[earlier][name]
                assert change[name].nats == pytest.approx(difference.sum() / tokens[name].sum(), abs=1e-12)
                assert change[name].standard_error == pytest.approx(jackknife(difference, tokens[name]), rel=1e-9)
    assert not feedback[0].change_from_first and not feedback[0].change_from_previous
    last = json.loads((finished / "evaluation.json").read_text())["domains"]
    for name in DOMAINS:
        assert sorted(last[name]["loss_sum_nats"]) == sorted(nats[30][name].tolist())


def jackknife(total: np.ndarray, size: np.ndarray) -> float:
    """Standard error of sum(total) / sum(size)."""
    count, whole = len(total), total.sum() / size.sum()
    without = np.array([np.delete(total, i).sum() / np.delete(size, i).sum() for i in range(count)])
    return math.sqrt((count - 1) / count * ((without - whole) ** 2).sum())


@pytest.mark.parametrize("part", ["model", "best"])
def test_plain_transformers_loads_the_result(finished: Path, part: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(finished / part)
    tokenizer = AutoTokenizer.from_pretrained(finished / part)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+1="}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert out.shape[1] > prompt["input_ids"].shape[1]


def test_the_same_command_again_only_shows_the_summary(finished: Path) -> None:
    lines_before = num_lines(finished / "events.jsonl")
    again = raymix("run", finished.parents[1] / "config.yaml", timeout_s=30)
    assert again.returncode == 0
    assert "law" in again.stdout
    assert num_lines(finished / "events.jsonl") == lines_before


def test_once_it_has_ended_its_summary_is_shown_without_ray_torch_or_transformers(finished: Path) -> None:
    code = (
        "import sys; from orchestrator.cli.main import app\n"
        "app(['run', sys.argv[1]], standalone_mode=False)\n"
        "print(*{'ray', 'torch', 'transformers', 'deepspeed', 'pandas'} & set(sys.modules), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, str(finished.parents[1] / "config.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "report.html" in done.stdout and all(name in done.stdout for name in DOMAINS)
    assert done.stderr.strip() == ""


def test_a_finished_run_is_not_steered(finished: Path) -> None:
    late = raymix("weights", finished, "set", "law=0.2", "--by", "ben")
    assert late.returncode == 1 and "this run is finished" in late.stderr


def test_another_configuration_is_refused_under_the_same_name(finished: Path) -> None:
    refused = raymix("run", finished.parents[1] / "config.yaml", "--set", "training.learning_rate=0.1", timeout_s=30)
    assert refused.returncode == 1
    assert "training.learning_rate: was 0.003, is 0.1" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_benchmarks_are_scored_as_by_hand_and_without_a_network(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, result = PlainModel(finished.parents[1] / "base"), PlainModel(finished / "model")
    rows: list[dict[str, Any]] = [
        {"question": f"say {one} {two}", "choices": [f"{one} x", f"{two} x", "99999 x"]}
        for one in ("court", "party", "claim")
        for two in ("notice", "party", "zzzzz")
    ]
    for number, row in enumerate(rows):  # the first six are right as the result has them, the others are not
        picked, written = result.choice(row["question"], row["choices"]), result.writes(row["question"])
        row |= {"answer": (picked + (number > 5)) % 3, "text": written + "!" * (number > 5)}
    write_tasks(tmp_path / "tasks", [*rows, rows[0]])  # the last is beyond the limit
    picks = sum(base.choice(row["question"], row["choices"]) == row["answer"] for row in rows)
    texts = sum(base.writes(row["question"]) == row["text"] for row in rows)
    assert picks < 6 and texts < 6

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    done = raymix("evaluate", finished, "--tasks", "pick,write", "--tasks-folder", tmp_path / "tasks", "--limit", "9")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    scores = {score.task: score for score in TaskFile.model_validate_json((finished / "tasks.json").read_bytes()).tasks}
    for task, metric, correct in (("pick", "acc", picks), ("write", "exact_match", texts)):
        assert (scores[task].num_samples, scores[task].num_fewshot) == (9, 0)
        for score, num_right in (
            (scores[task].metrics[metric].base, correct),
            (scores[task].metrics[metric].result, 6),
        ):
            p = num_right / 9
            assert score.value == pytest.approx(p, abs=1e-12)
            assert score.stderr == pytest.approx(math.sqrt(p * (1 - p) / 8), abs=1e-12)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["datasets"], "nothing came from the hub"
    assert "Benchmarks" in (finished / "report.html").read_text()
    assert "exact_match" in done.stdout and not any(word in done.stdout for word in ("Traceback", "WARNING", "it/s"))


@pytest.mark.soak
def test_references_are_computed_once(finished: Path) -> None:
    folders = sorted(path.name.rsplit("-", 1)[0] for path in (finished.parent / "references").glob("*-*"))
    assert folders == sorted(DOMAINS)
    again = raymix("reference", finished.parents[1] / "config.yaml", "--output", finished / "again.json", timeout_s=60)
    assert again.returncode == 0, again.stderr
    computed = json.loads((finished / "reference.json").read_text())
    assert json.loads((finished / "again.json").read_text()) == computed
    for folder in (finished.parent / "references").glob("*-*"):
        name = folder.name.rsplit("-", 1)[0]
        _, feedback = load_journal(folder)
        assert computed["loss_nats"][name] == min(item.loss_nats(name) for item in feedback)
