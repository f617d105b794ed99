"""Records of a run that is being written, killed and gone on with: each step once, and whole."""

import json
from pathlib import Path

import pytest

from orchestrator.tracking.records import RunRecords, StepRecord
from tests.unit.conftest import FakeRun, MakeFakeRun
from workers.contracts import DomainWeights
from workers.events import note_event


def take(records: RunRecords, after: int) -> list[StepRecord]:
    records.refresh()
    return list(records.after(after))


def cut_back(run: FakeRun, last_step: int) -> None:
    """As a rank does that goes on from a checkpoint."""
    path = run.path / "metrics.jsonl"
    lines = [line for line in path.read_text().splitlines(keepends=True) if json.loads(line)["step"] <= last_step]
    path.write_text("".join(lines))


def test_a_step_is_told_once_and_with_all_that_belongs_to_it(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=40, num_steps=0, every=10)
    records = RunRecords(run.path)
    told: list[StepRecord] = []
    for step in range(1, 41):
        run.append("metrics.jsonl", run.metric_line(step))
        told += take(records, told[-1].step if told else -1)  # looks between a step's line and its evaluation
        if step % 10 == 0:
            run.write_evaluation(step)
            if step < 40:
                run.change_shares(step + 1)
    run.write_summary()
    told += take(records, told[-1].step)
    assert [record.step for record in told] == list(range(41))
    evaluated = [record.step for record in told if "mean_loss_nats" in record.values]
    assert evaluated == [0, 10, 20, 30, 40]
    for step in evaluated:
        assert {d: told[step].values[f"loss_nats/{d}"] for d in run.domains} == pytest.approx(run.losses[step])
        errors = {d: told[step].values[f"standard_error_nats/{d}"] for d in run.domains}
        assert errors == run.errors(step)["standard_error_nats"]
    assert [record.step for record in told if "share/math" in record.values] == [0, 1, 10, 11, 20, 21, 30, 31, 40][1:]


def test_a_running_step_waits_for_the_next(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=40, num_steps=7, every=10)
    records = RunRecords(run.path)
    assert take(records, -1) == []  # nobody knows yet what was written after the first look
    assert [record.step for record in take(records, -1)] == list(range(7))
    assert take(records, 6) == []


def test_steps_that_are_trained_again_are_told_once(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=40, num_steps=27, every=10)
    records = RunRecords(run.path)
    take(records, -1)
    told = take(records, -1)
    assert told[-1].step == 26
    cut_back(run, 20)
    told += take(records, told[-1].step)
    for step in range(21, 41):
        run.write_steps(step, step)
        told += take(records, told[-1].step)
    run.write_summary()
    told += take(records, told[-1].step)
    assert [record.step for record in told] == list(range(41))


def test_values_are_those_of_the_step(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=20, every=10)
    told = take(RunRecords(run.path), -1)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [record.values["train_loss_nats"] for record in told[1:]] == [line["loss_nats"] for line in lines]
    assert told[20].values["tokens_total"] == sum(line["num_tokens"] for line in lines)
    assert "grad_norm" not in told[1].values and told[2].values["grad_norm"] == lines[1]["grad_norm"]  # null at first
    weights = [DomainWeights.model_validate_json(path.read_bytes()) for path in sorted(run.path.glob("weights/*"))]
    for step, version in ((1, 0), (10, 0), (11, 1), (20, 1)):
        shares = {domain: told[step].values[f"share/{domain}"] for domain in run.domains}
        assert shares == weights[version].shares
        assert told[step].values["epochs/math"] == lines[step - 1]["epochs"]["math"]
    assert told[10].values["algorithm/temperature"] == 1 / 11
    assert "algorithm/gamma/law" in told[10].values and "algorithm/gamma/law" not in told[9].values


def test_a_loss_that_is_not_finite_is_left_out_and_its_event_counted(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=20, num_steps=9, every=10)
    run.append("metrics.jsonl", run.metric_line(10))
    run.write_evaluation(10, losses=dict.fromkeys(run.domains, 1.0) | {"law": float("nan")})
    for step in (4, 10):
        note_event(run.path, step, "non_finite_loss", "law: nan")
    run.write_steps(11, 20)
    run.write_summary()
    told = take(RunRecords(run.path), -1)
    assert told[10].values["loss_nats/math"] == 1.0
    assert not {"loss_nats/law", "mean_loss_nats"} & told[10].values.keys()
    counts = {record.step: record.values.get("events/non_finite_loss") for record in told}
    assert {step: count for step, count in counts.items() if count is not None} == {4: 1.0, 10: 2.0}


def test_nothing_is_told_of_a_folder_without_a_run(tmp_path: Path) -> None:
    assert take(RunRecords(tmp_path / "none"), -1) == []
