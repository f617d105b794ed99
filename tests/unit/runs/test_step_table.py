"""A block of lines read at once is what the same lines are one by one."""

import json
import math
import random
from typing import Any

import numpy as np
import pytest

from orchestrator.runs import step_table
from orchestrator.runs.step_table import StepTable
from workers.clock import format_time

Record = dict[str, Any]


def by_lines(records: list[Record]) -> StepTable:
    table = StepTable()
    for record in records:
        table.append(record)
    return table


def block_of(records: list[Record]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def assert_same(one: StepTable, other: StepTable) -> None:
    np.testing.assert_array_equal(one.steps, other.steps)
    assert set(one.keys) == set(other.keys)
    for key in one.keys:
        np.testing.assert_array_equal(one.column(key), other.column(key))


@pytest.fixture(autouse=True)
def every_block_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_table, "MIN_BLOCK_BYTES", 0)


def some_records(num_steps: int = 60) -> list[Record]:
    rng = random.Random(0)
    records = []
    for step in range(1, num_steps + 1):
        losses = {name: rng.random() if rng.random() < 0.5 else None for name in ("math", "a.b/c", "")}
        record: Record = {"step": step, "loss_nats": rng.random(), "domain_loss_nats": losses, "rows": {"math": step}}
        if step > 20:
            record["grad_norm"] = rng.random()
        if step % 7:
            record["time"] = format_time(1.8e9 + 1.5 * step)
        if step == 30:
            record |= {"rows": {"math": None}, "loss_nats": 2}
        if step > 30:
            record["mask"] = {}
        if step == 31:
            record |= {"loss_nats": math.nan, "grad_norm": math.inf}
        records.append(record)
    return records


def test_a_block_is_its_lines() -> None:
    records = some_records()
    table = StepTable()
    assert table.extend(block_of(records[:33])) and table.extend(block_of(records[33:]))
    assert len(table) == 60
    assert_same(table, by_lines(records))


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_time_becomes_seconds_since_the_epoch(first: int) -> None:
    """Also where the lines of an older version, which have none, come first."""
    records: list[Record] = [{"step": 1, "loss_nats": 1.0}, {"step": 2, "loss_nats": 1.0, "time": None}]
    records += [{"step": step, "time": f"2027-01-15T08:00:0{step}.250000Z", "loss_nats": 1.0} for step in range(3, 6)]
    block = StepTable()
    if not block.extend(block_of(records[first:])):
        block = by_lines(records[first:])
    assert_same(block, by_lines(records[first:]))
    assert block.column("time").tolist()[-3:] == [1_800_000_003.25, 1_800_000_004.25, 1_800_000_005.25]
    assert math.isnan(by_lines(records).column("time")[0])


def test_blocks_and_lines_follow_each_other() -> None:
    records = some_records()
    table = by_lines(records[:25])
    assert table.extend(block_of(records[25:]))
    assert_same(table, by_lines(records))


@pytest.mark.parametrize(
    "records",
    [
        [{"step": 1}, *({"step": step, f"only {step}": 1.0} for step in range(2, 30)), {"step": 30}],
        [{"step": 1} | {f"key {index}": 1.0 for index in range(1000)}, *({"step": step} for step in range(2, 1000))],
    ],
)
def test_columns_that_few_lines_have_are_not_made_for_a_whole_block(records: list[Record]) -> None:
    """Of arrow's columns each has a number for every line: gigabytes for a block that is made for it."""
    assert not StepTable().extend(block_of(records))


@pytest.mark.parametrize("steps", [[1, 2, 3, 2, 3, 4], [5, 3, 4, 1], [2, 2, 2], [1, 2, 3, 1]])
def test_steps_that_come_again_replace_what_follows_them(steps: list[int]) -> None:
    records = [{"step": step, "loss_nats": float(index)} for index, step in enumerate(steps)]
    before = [{"step": step, "loss_nats": -1.0} for step in (1, 2, 3)]
    table = by_lines(before)
    assert table.extend(block_of(records))
    assert_same(table, by_lines(before + records))


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 2, "loss_nats": "Infinity"}',
        b'{"step": 2, "loss_nats": [1.0]}',
        b'{"step": 2, "other": [1.0]}',
        b'{"step": 2, "other": "text"}',
        b'{"step": null, "loss_nats": 1.0}',
        b'{"step": 1.5, "loss_nats": 1.0}',
        b'{"loss_nats": 1.0}',
        b'{"step": 2, "lo{"step": 2}',
        b'{"step": 2} {"step": 3}',
        b"[]",
        b"",
    ],
)
def test_what_is_not_plain_is_left_to_the_lines(line: bytes) -> None:
    for lines in ((b'{"step": 1, "loss_nats": 1.0}', line), (line, b'{"step": 7, "loss_nats": 1.0}')):
        table = StepTable()
        assert not table.extend(b"\n".join([*lines, b""]))
        assert len(table) == 0 and table.keys == []


def test_small_blocks_are_left_to_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_table, "MIN_BLOCK_BYTES", 1000)
    assert not StepTable().extend(b'{"step": 1}\n')


def test_a_missing_number_is_nan() -> None:
    table = StepTable()
    assert table.extend(block_of([{"step": 1, "x": None}, {"step": 2, "x": 3}]))
    assert math.isnan(table.column("x")[0]) and table.last("x") == 3.0
