"""Where a run starts that goes on from another: its parameters, or the model that it exported."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.run import RunConfig
from orchestrator.training.plan import find_start
from tests.unit.runs.test_lock import config

LORA = {"max_steps": 10, "strategy": {"type": "lora"}}


def write_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / "checkpoints" / f"step-{step:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    files = {"state.json": {"size": 2, "sha256": hashlib.sha256(b"{}").hexdigest()}}
    (checkpoint / "manifest.json").write_text(json.dumps({"files": files}))
    return checkpoint


def finish(settings: RunConfig, with_checkpoint: bool = True) -> Path:
    """The folder of a finished run, as far as a start looks at it."""
    folder = settings.folder
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "config.json").write_text(settings.model_dump_json())
    (folder / "summary.json").write_text("{}")
    if with_checkpoint:
        write_checkpoint(folder, 10)
    return folder


def from_run(folder: Path, run: Path, name: str = "next", optimizer: str = "fresh", **changes: Any) -> RunConfig:
    return config(folder, name=name, start={"run": str(run), "optimizer": optimizer}, **changes)


def test_without_a_start_it_is_the_base_model(tmp_path: Path) -> None:
    assert find_start(config(tmp_path)) is None


def test_the_same_strategy_goes_on_from_the_parameters(tmp_path: Path) -> None:
    earlier = finish(config(tmp_path))
    start = find_start(from_run(tmp_path, earlier))
    assert start is not None and start.checkpoint == earlier.resolve() / "checkpoints" / "step-00000010"
    assert start.model.path == "o/m" and not start.keeps_optimizer
    kept = find_start(from_run(tmp_path, earlier, optimizer="kept"))
    assert kept is not None and kept.keeps_optimizer


def test_another_strategy_goes_on_from_the_exported_model(tmp_path: Path) -> None:
    full = finish(config(tmp_path))
    adapted = from_run(tmp_path, full, training=LORA)
    start = find_start(adapted)
    assert start is not None and start.checkpoint is None and start.model.path == str(full.resolve() / "model")
    with pytest.raises(ValueError, match="trained other parameters"):
        find_start(from_run(tmp_path, full, optimizer="kept", training=LORA))


def test_adapters_go_on_upon_the_model_that_they_were_trained_on(tmp_path: Path) -> None:
    """full -> lora -> lora: the third stands on the exported model of the first, with the adapters of the second."""
    full = finish(config(tmp_path))
    first = finish(from_run(tmp_path, full, name="first", training=LORA))
    start = find_start(from_run(tmp_path, first, name="second", training=LORA))
    assert start is not None and start.model.path == str(full.resolve() / "model")
    assert start.checkpoint == first.resolve() / "checkpoints" / "step-00000010"


def test_a_run_that_cannot_be_started_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not the folder of a run"):
        find_start(from_run(tmp_path, tmp_path / "nothing"))
    earlier = finish(config(tmp_path))
    with pytest.raises(ValueError, match="has the base model o/m"):
        find_start(from_run(tmp_path, earlier, model={"path": "o/other"}))
    (earlier / "checkpoints" / "step-00000010" / "state.json").write_text("xx")
    with pytest.raises(ValueError, match=r"last checkpoint .* is missing"):
        find_start(from_run(tmp_path, earlier))
    (earlier / "summary.json").unlink()
    with pytest.raises(ValueError, match="is not finished"):
        find_start(from_run(tmp_path, earlier))


def test_a_run_without_its_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"last checkpoint .* is missing"):
        find_start(from_run(tmp_path, finish(config(tmp_path), with_checkpoint=False)))


def test_an_older_checkpoint_does_not_stand_in_for_a_torn_last_one(tmp_path: Path) -> None:
    earlier = finish(config(tmp_path))
    (write_checkpoint(earlier, 11) / "state.json").write_text("xx")
    with pytest.raises(ValueError, match="step-00000011 is skipped"):
        find_start(from_run(tmp_path, earlier))
