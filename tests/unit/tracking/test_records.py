"""Records of a run that is being written, killed and gone on with: each step once, and whole."""

import itertools
import json
import math
import re
from pathlib import Path

import pytest

from orchestrator.tracking.base import RunRecords, StepRecord
from tests.unit.conftest import BEGUN_AT, FakeRun, MakeFakeRun
from workers.contracts import DomainWeights
from workers.events import log_event
from workers.validation.domain_losses import mean_loss, worst_loss


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


@pytest.mark.parametrize("num_looks", [0, 1, 2])
@pytest.mark.parametrize("last", [0, 1, 10, 19, 23])
def test_of_a_run_that_has_ended_without_a_result_the_last_step_is_told_too(
    fake_run: MakeFakeRun, last: int, num_looks: int
) -> None:
    """As after SIGTERM: at any step, however often it was looked at before."""
    run = fake_run(total_steps=40, num_steps=last, every=10)
    records = RunRecords(run.path)
    told: list[StepRecord] = []
    for _ in range(num_looks):
        told += take(records, told[-1].step if told else -1)
    records.refresh(is_over=True)
    assert records.has_begun
    told += records.after(told[-1].step if told else -1)
    assert [record.step for record in told] == list(range(last + 1))
    assert [record.step for record in told if "mean_loss_nats" in record.values] == list(range(0, last + 1, 10))


@pytest.mark.parametrize(("last", "every"), [(20, 10), (40, 15)])
def test_a_step_whose_evaluation_was_interrupted_waits_for_who_goes_on(
    fake_run: MakeFakeRun, last: int, every: int
) -> None:
    run = fake_run(total_steps=40, num_steps=last - 1, every=every)
    run.append("metrics.jsonl", run.metric_line(last))
    records = RunRecords(run.path)
    records.refresh(is_over=True)
    assert [record.step for record in records.after(-1)] == list(range(last))
    run.write_evaluation(last)
    records.refresh(is_over=True)
    (told,) = records.after(last - 1)
    assert told.values["loss_nats/law"] == pytest.approx(run.losses[last]["law"])


def test_a_run_that_ended_before_its_first_evaluation_has_nothing_to_tell(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=40, num_steps=0)
    (run.path / "feedback" / "00000000.json").unlink()
    records = RunRecords(run.path)
    records.refresh(is_over=True)
    assert not records.has_begun and list(records.after(-1)) == []


def test_what_ended_a_run_is_counted_with_its_last_step(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=40, num_steps=13, every=10)
    log_event(run.path, 14, "diverged", "the loss of law is nan")  # at a step that was never done
    records = RunRecords(run.path)
    records.refresh(is_over=True)
    *others, last = records.after(-1)
    assert last.step == 13 and last.values["events/diverged"] == 1.0
    assert not any("events/diverged" in record.values for record in others)


def test_a_record_has_the_time_of_its_step(fake_run: MakeFakeRun) -> None:
    run = fake_run(total_steps=20, every=10)
    told = take(RunRecords(run.path), -1)
    assert told[0].time == BEGUN_AT + 0.5  # of its evaluation: there is no line
    assert [record.time for record in told[1:]] == pytest.approx([BEGUN_AT + 1.6 * step for step in range(1, 21)])


def test_without_times_records_are_the_same(fake_run: MakeFakeRun) -> None:
    """As an older version wrote them."""
    run = fake_run(total_steps=20, every=10)
    expected = take(RunRecords(run.path), -1)
    for path in (run.path / "metrics.jsonl", *(run.path / "feedback").glob("*.json")):
        path.write_text(re.sub(r',? ?"time": ?"[^"]*"', "", path.read_text()))
        assert "time" not in path.read_text()
    told = take(RunRecords(run.path), -1)
    assert [(record.step, record.values) for record in told] == [(each.step, each.values) for each in expected]
    assert all(math.isnan(record.time) for record in told)


# Wherever the NaN stands: every comparison with it is False.
@pytest.mark.parametrize("losses", list(itertools.permutations([1.0, 2.0, math.nan])))
def test_the_worst_of_losses_is_nan_where_one_is(losses: tuple[float, ...]) -> None:
    assert math.isnan(worst_loss(losses)) and math.isnan(mean_loss(losses))
    assert worst_loss([1.0, 3.0, 2.0]) == 3.0 and worst_loss([1.0, math.inf]) == math.inf
    assert math.isnan(worst_loss([])) and math.isnan(mean_loss([])) and mean_loss([1.0, 3.0, 2.0]) == 2.0


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
        log_event(run.path, step, "non_finite_loss", "law: nan")
    run.write_steps(11, 20)
    run.write_summary()
    told = take(RunRecords(run.path), -1)
    assert told[10].values["loss_nats/math"] == 1.0
    assert not {"loss_nats/law", "mean_loss_nats"} & told[10].values.keys()
    counts = {record.step: record.values.get("events/non_finite_loss") for record in told}
    assert {step: count for step, count in counts.items() if count is not None} == {4: 1.0, 10: 2.0}


def test_nothing_is_told_of_a_folder_without_a_run(tmp_path: Path) -> None:
    assert take(RunRecords(tmp_path / "none"), -1) == []
