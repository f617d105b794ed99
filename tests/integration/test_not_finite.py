"""What is NaN is never the best, and a base model that is NaN ends a run before its first step."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.integration import not_finite_cases
from tests.integration.zero_processes import processes
from tests.runs import DOMAINS, write_run

SETTINGS: dict[str, Any] = {
    "mixing": {"type": "uniform"},
    "training__max_steps": 6,
    "evaluation__every": 2,
    "training__deepspeed__zero_stage": 0,
    "cluster__num_workers": 1,
}


def train(folder: Path, planted: dict[int, dict[str, float]] | None = None, **changes: Any) -> str:
    path = write_run(folder, **(SETTINGS | changes))
    return str(processes(1).run(not_finite_cases.train, path, planted or {})[0])


def test_a_base_model_that_is_nan_is_told_before_the_first_step(tmp_path: Path) -> None:
    path = write_run(tmp_path, **SETTINGS, data__packing=False)  # else the proof of isolation tells it before
    not_finite_cases.plant_overflow(tmp_path / "base")
    error = processes(1).run(not_finite_cases.train, path, {})[0]
    assert error.startswith("before the first step: with the initial model the loss of ")
    assert all(f"{name} is nan" in error for name in DOMAINS)
    folder = tmp_path / "runs" / "small"
    assert not (folder / "checkpoints").exists() and not (folder / "best").exists()
    assert not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text()


def test_one_domain_alone_is_named(tmp_path: Path) -> None:
    error = train(tmp_path, {0: {"copy": math.inf}})
    assert "the loss of copy is inf;" in error and "add" not in error


# With the NaN before and after the others: every comparison with it is False, whichever way round it is made.
@pytest.mark.parametrize("domain", [DOMAINS[0], DOMAINS[-1]])
@pytest.mark.parametrize("best", ["mean", "worst"])
def test_an_evaluation_that_is_nan_is_not_the_best(best: str, domain: str, tmp_path: Path) -> None:
    assert train(tmp_path, {1: {domain: math.nan}, 3: {domain: math.nan}}, evaluation__best=best) == ""
    folder = tmp_path / "runs" / "small"
    assert json.loads((folder / "summary.json").read_text())["best"]["step"] == 4
    (state,) = folder.glob("checkpoints/step-00000006/state.json")
    assert json.loads(state.read_text())["state"]["best"]["step"] == 4
    assert (folder / "best" / "config.json").exists()


def test_where_every_evaluation_is_nan_the_base_model_is_the_best(tmp_path: Path) -> None:
    assert train(tmp_path, {number: {"add": math.nan} for number in (1, 2, 3)}) == ""
    folder = tmp_path / "runs" / "small"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["best"]["step"], summary["verdict"], summary["not_finite"]) == (0, "worse_than_base", ["add"])
    assert not (folder / "best").exists() and (folder / "model").exists()


def test_a_run_that_diverges_keeps_the_checkpoint_that_is_being_written(tmp_path: Path) -> None:
    path = write_run(
        tmp_path, **SETTINGS, training__learning_rate=1e30, training__warmup_fraction=0.0, training__checkpoint_every=1
    )
    error = processes(1).run(not_finite_cases.train_with_a_slow_disk, path)[0]
    assert error.startswith("step 2: ")
    assert [path.name for path in (tmp_path / "runs" / "small" / "checkpoints").iterdir()] == ["step-00000001"]
