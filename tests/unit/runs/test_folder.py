"""The reader of a run's files: incremental, patient with what is half written, right after a resume."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from orchestrator.runs.folder import RunFolder
from orchestrator.runs.growing import LineTail
from orchestrator.runs.step_table import StepTable
from tests.unit.conftest import MakeFakeRun


def read(path: Path) -> RunFolder:
    run = RunFolder(path)
    run.refresh()
    return run


def test_reads_what_was_written(fake_run: MakeFakeRun) -> None:
    written = fake_run(total_steps=40, every=20)
    run = read(written.path)
    assert run.name == "five-domains"
    assert run.domains == written.domains
    assert run.total_steps == 40
    assert run.metrics.steps.tolist() == list(range(1, 41))
    assert [feedback.step for feedback in run.feedback] == [0, 20, 40]
    assert math.isclose(run.feedback[1].loss_nats("law"), written.losses[20]["law"])
    assert run.weights[-1].shares == written.shares
    assert run.summary is not None and run.summary.domains["math"].loss_nats_end == written.losses[40]["math"]
    assert run.mixing.column("values/phi/code").tolist() == [written.losses[s]["code"] / 3.0 for s in (0, 20, 40)]


def test_a_file_that_never_changes_is_news_once(tmp_path: Path, fake_run: MakeFakeRun) -> None:
    summary = (fake_run(total_steps=20, every=10).path / "summary.json").read_bytes()
    files = {
        "config.json": b'{"name": "law"}',
        "data.json": b'{"domains": {}, "findings": []}',
        "summary.json": summary,
    }
    folder = tmp_path / "appearing"
    folder.mkdir()
    run = read(folder)
    assert (run.config, run.data, run.summary) == ({}, None, None)
    for name, content in files.items():
        (folder / name).write_bytes(content)
        assert run.refresh() and not run.refresh()
    assert run.config == {"name": "law"} and run.data is not None and run.summary is not None


def test_every_number_of_a_line_becomes_a_column(fake_run: MakeFakeRun) -> None:
    written = fake_run(total_steps=30, every=10)
    lines = [json.loads(line) for line in (written.path / "metrics.jsonl").read_text().splitlines()]
    metrics = read(written.path).metrics
    for key in ("loss_nats", "learning_rate", "grad_norm"):
        expected = [math.nan if line[key] is None else line[key] for line in lines]
        np.testing.assert_array_equal(metrics.column(key), expected)
    losses = [line["domain_loss_nats"]["law"] for line in lines]
    expected = [math.nan if loss is None else loss for loss in losses]
    np.testing.assert_array_equal(metrics.column("domain_loss_nats/law"), expected)


def test_a_half_written_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss_nats": 2.0}\n{"step": 2, "loss_')
    run = read(tmp_path)
    assert run.metrics.steps.tolist() == [1]
    assert not run.refresh()
    with path.open("a") as file:
        file.write('nats": 1.5}')  # whole as JSON, yet not as a line: the number may go on
    assert not run.refresh()
    with path.open("a") as file:
        file.write("\n")
    assert run.refresh()
    assert run.metrics.column("loss_nats").tolist() == [2.0, 1.5]
    assert run.num_unreadable_lines == 0


def test_only_new_lines_and_new_files_are_read(fake_run: MakeFakeRun) -> None:
    written = fake_run(total_steps=40, num_steps=20, every=20)
    run = read(written.path)
    assert not run.refresh()
    metrics, feedback = written.path / "metrics.jsonl", written.path / "feedback" / "00000000.json"
    size, stat = metrics.stat().st_size, feedback.stat()
    with metrics.open("r+b") as file:  # garble what was read already, in place: it must not be looked at again
        file.write(b"x" * (size - 1))
    assert stat.st_size == feedback.stat().st_size
    written.write_steps(21, 40)
    assert run.refresh()
    assert run.metrics.steps.tolist() == list(range(1, 41))
    assert run.num_unreadable_lines == 0
    assert [item.step for item in run.feedback] == [0, 20, 40]


def test_a_resumed_run_replaces_the_steps_that_it_repeats() -> None:
    table = StepTable()
    for step, loss in ((1, 5.0), (2, 4.0), (3, 3.0), (2, 4.5)):
        table.append({"step": step, "loss_nats": loss})
    assert table.steps.tolist() == [1, 2]
    assert table.column("loss_nats").tolist() == [5.0, 4.5]


def test_a_column_that_comes_late_is_unknown_before() -> None:
    table = StepTable()
    table.append({"step": 1, "loss_nats": 1.0})
    table.append({"step": 2, "epochs": {"a/b": 0.5}, "loss_nats": "NaN"})
    np.testing.assert_array_equal(table.column("epochs/a/b"), [math.nan, 0.5])
    np.testing.assert_array_equal(table.column("loss_nats"), [1.0, math.nan])
    np.testing.assert_array_equal(table.column("nowhere"), [math.nan, math.nan])


def test_a_file_cut_back_or_replaced_is_read_anew(tmp_path: Path) -> None:
    events, metrics = tmp_path / "events.jsonl", tmp_path / "metrics.jsonl"
    events.write_text('{"step": 1, "kind": "attempt", "message": "1"}\n{"step": 2, "kind": "x", "message": "longer"}\n')
    metrics.write_text('{"step": 1, "loss_nats": 2.0}\n{"step": 2, "loss_nats": 1.0}\n')
    run = read(tmp_path)
    events.write_text('{"step": 1, "kind": "attempt", "message": "2"}\n')
    other = tmp_path / "other"
    other.write_text('{"step": 1, "loss_nats": 9.0}\n{"step": 2, "loss_nats": 8.0}\n{"step": 3, "loss_nats": 7.0}\n')
    other.replace(metrics)
    assert run.refresh()
    assert [event.message for event in run.events] == ["2"]
    assert run.metrics.column("loss_nats").tolist() == [9.0, 8.0, 7.0]


def test_unreadable_lines_are_counted_and_passed_over(tmp_path: Path) -> None:
    lines = ['{"step": 1, "loss_nats": 2.0}', '{"step": 2, "lo{"step": 2}', "[]", '{"loss_nats": 1.0}', '{"step": 3}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "events.jsonl").write_text('{"message": "no kind"}\n')
    run = read(tmp_path)
    assert run.metrics.steps.tolist() == [1, 3]
    assert run.num_unreadable_lines == 4


def test_an_empty_or_missing_folder_is_a_run_that_has_not_begun(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "later")
    assert not run.refresh()
    assert (run.name, run.domains, run.total_steps, run.weights, run.summary) == ("later", [], None, [], None)
    assert run.weights_at(1) is None
    assert math.isnan(run.metrics.recent_tokens_per_second())


def test_a_half_written_small_file_is_read_when_it_is_whole(fake_run: MakeFakeRun) -> None:
    written = fake_run(total_steps=20, num_steps=0)
    feedback = written.path / "feedback" / "00000000.json"
    whole = feedback.read_text()
    feedback.write_text(whole[:40])
    (written.path / "feedback" / ".00000020.json.tmp").write_text("{")
    run = read(written.path)
    assert run.feedback == []
    feedback.write_text(whole)
    assert run.refresh()
    assert [item.step for item in run.feedback] == [0]


def test_the_version_that_holds_for_a_step(fake_run: MakeFakeRun) -> None:
    run = read(fake_run(total_steps=60, every=20).path)
    versions = {step: run.weights_at(step) for step in (0, 1, 20, 21, 60)}
    numbers = {step: weights.version for step, weights in versions.items() if weights}
    assert numbers == {0: 0, 1: 0, 20: 0, 21: 1, 60: 2}


def test_speed_is_tokens_over_seconds_not_a_mean_of_speeds(tmp_path: Path) -> None:
    steps = [{"step": 1, "num_tokens": 1000, "tokens_per_second": 1000.0}]
    steps += [{"step": 2, "num_tokens": 1000, "tokens_per_second": 250.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    run = read(tmp_path)
    assert run.metrics.recent_seconds_per_step() == 2.5
    assert run.metrics.recent_tokens_per_second() == 400.0
    assert run.metrics.recent_tokens_per_second(step=1) == 1000.0


def test_a_line_finished_while_the_file_is_read_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.runs.growing.BLOCK_BYTES", 12)
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    tail = LineTail(path)
    blocks = tail.new_blocks()
    read = [next(blocks)]
    with path.open("a") as file:
        file.write('ss_nats": 1.5}\n{"step": 3}\n')
    read += [*blocks, *tail.new_blocks()]
    assert all(block.startswith(b"{") and block.endswith(b"}\n") for block in read)
    assert b"".join(read) == path.read_bytes()
