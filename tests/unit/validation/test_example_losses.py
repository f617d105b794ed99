"""What each held-out example lost, on disk: read back as it was, whole or absent, cut back with the run."""

import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from tests.unit.validation.test_held_out import make_examples, store_of
from workers.validation.example_losses import (
    EvaluationHistory,
    evaluated_steps,
    evaluation_path,
    read_losses,
    write_evaluation_json,
)
from workers.validation.held_out import draw_sample
from workers.validation.loss_statistics import ExampleLosses

NAMES = ("math", "a/b c", "\u00fcber", "empty")


def made(seed: int) -> dict[str, ExampleLosses]:
    rng = np.random.default_rng(seed)
    counts = (7, 3, 1, 0)
    return {
        name: ExampleLosses(
            rng.integers(0, 2**64, count, dtype=np.uint64), rng.gamma(2.0, 9.0, count), rng.integers(1, 99, count), 50
        )
        for name, count in zip(NAMES, counts, strict=True)
    }


def check_same(found: Any, expected: Any) -> None:
    assert list(found) == list(expected)
    for name in expected:
        for field in ("example_E", "loss_sum_nats_E", "num_tokens_E"):
            assert np.array_equal(getattr(found[name], field), getattr(expected[name], field), equal_nan=True)
        assert found[name].num_held_out == expected[name].num_held_out


def test_they_are_read_back_to_the_bit(tmp_path: Path) -> None:
    losses = made(0)
    losses["math"].loss_sum_nats_E[2] = np.nan
    EvaluationHistory(tmp_path, 0).write(600, losses)
    assert evaluated_steps(tmp_path) == [600]
    check_same(read_losses(tmp_path, 600), losses)


def test_the_same_evaluation_is_the_same_file(tmp_path: Path) -> None:
    history = EvaluationHistory(tmp_path, 0)
    for step in (1, 2):
        history.write(step, made(0))
    one, two = (evaluation_path(tmp_path, step).read_bytes() for step in (1, 2))
    assert one == two


def test_a_run_that_goes_on_finds_its_first_and_its_newest_and_later_ones_are_gone(tmp_path: Path) -> None:
    for step in (0, 5, 10, 15):
        EvaluationHistory(tmp_path, step).write(step, made(step))
    (tmp_path / "evaluations" / "notes.npz").write_text("a person's")
    history = EvaluationHistory(tmp_path, 12)
    assert evaluated_steps(tmp_path) == [0, 5, 10]
    assert history.newest_step == 10
    check_same(history.newest, made(10))
    check_same(history.first, made(0))
    history.remember(15, made(15))
    check_same(history.newest, made(15))
    check_same(history.first, made(0))
    assert (tmp_path / "evaluations" / "notes.npz").exists()


def test_a_run_that_begins_has_none_and_step_0_is_its_first(tmp_path: Path) -> None:
    EvaluationHistory(tmp_path, 20).write(20, made(1))  # of a run that was there before and is begun anew
    history = EvaluationHistory(tmp_path, 0)
    assert history.first is history.newest is history.newest_step is None
    history.remember(0, made(0))
    assert history.first is history.newest and history.newest_step == 0


def test_an_evaluation_in_the_middle_is_no_first_one(tmp_path: Path) -> None:
    EvaluationHistory(tmp_path, 5).write(5, made(5))
    history = EvaluationHistory(tmp_path, 5)
    assert history.first is None and history.newest_step == 5


def test_a_crash_while_writing_leaves_the_older_file(tmp_path: Path) -> None:
    history = EvaluationHistory(tmp_path, 0)
    history.write(5, made(0))
    full = OSError(28, "No space left on device")
    with patch.object(os, "fsync", side_effect=full), pytest.raises(OSError, match="No space left"):
        history.write(5, made(1))
    check_same(read_losses(tmp_path, 5), made(0))
    assert evaluated_steps(tmp_path) == [5]


@pytest.mark.parametrize("content", [b"", b"half of it", "cut"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes | str) -> None:
    EvaluationHistory(tmp_path, 0).write(5, made(0))
    path = evaluation_path(tmp_path, 5)
    path.write_bytes(path.read_bytes()[:-200] if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=r"00000005\.npz is damaged: .*delete it"):
        read_losses(tmp_path, 5)
    with pytest.raises(FileNotFoundError):
        read_losses(tmp_path, 6)


def test_evaluation_json_is_in_the_order_of_the_stores(tmp_path: Path) -> None:
    store = store_of(make_examples(0, 30))
    samples = {"math": draw_sample(store, 6)}
    count = len(samples["math"].example_E)
    nats = np.random.default_rng(1).random(count)
    losses = {"math": ExampleLosses(samples["math"].example_E, nats, samples["math"].num_tokens_E, 30)}
    write_evaluation_json(tmp_path / "evaluation.json", samples, losses)
    columns = json.loads((tmp_path / "evaluation.json").read_text())["domains"]["math"]
    assert list(columns) == ["row", "example", "loss_sum_nats", "num_tokens"]
    places = list(zip(columns["row"], columns["example"], strict=True))
    assert places == sorted(places) and len(places) == count
    assert sum(columns["loss_sum_nats"]) == pytest.approx(nats.sum())
    for (row, place), tokens, loss in zip(places, columns["num_tokens"], columns["loss_sum_nats"], strict=True):
        starts = [*np.flatnonzero(store.position_ids[row, : store.row_lengths[row]] == 0), store.row_lengths[row]]
        assert store.loss_mask[row, starts[place] : starts[place + 1]].sum() == tokens
        e = np.flatnonzero((samples["math"].row_E == row) & (samples["math"].place_E == place))
        assert nats[e].tolist() == [loss]
