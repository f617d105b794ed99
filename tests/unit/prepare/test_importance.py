"""Importance of a run: from files or measured on the domains, kept with the run, named by its content."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from orchestrator.config.load import load_config
from orchestrator.config.run import RunConfig
from orchestrator.prepare import importance
from orchestrator.prepare.importance import with_importance
from orchestrator.prepare.token_stores import prepare_stores
from tests.runs import write_run
from workers.strategies.cofitune.importance import KINDS, read_importance, read_scores, write_importance


def configured(folder: Path, **strategy: Any) -> RunConfig:
    domains = {"law": {"train": "law.jsonl"}, "code": {"train": "code.jsonl"}, "general": {"eval": "general.jsonl"}}
    return RunConfig.model_validate(
        {
            "name": "masked",
            "output_dir": folder / "runs",
            "model": {"path": "base"},
            "domains": domains,
            "mixing": {"type": "uniform"},
            "training": {"max_steps": 1, "strategy": {"type": "cofitune", **strategy}},
        }
    )


def write(path: Path, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    values = {kind: rng.random((2, 3), dtype=np.float32) for kind in KINDS}
    write_importance(path, values, {})
    return values


def named(config: RunConfig) -> Path:
    (path,) = config.training.strategy.importance.files  # type: ignore[union-attr]
    return path


def test_files_are_merged_kept_with_the_run_and_named_by_content(tmp_path: Path) -> None:
    sets = [write(tmp_path / f"{i}.safetensors", i) for i in range(2)]
    files = [str(tmp_path / f"{i}.safetensors") for i in range(2)]
    config = configured(tmp_path, importance={"files": files})
    path = named(with_importance(config, {}, Console(quiet=True)))
    expected = {kind: np.maximum(sets[0][kind], sets[1][kind]) for kind in KINDS}
    for file in (path, config.folder / "importance.safetensors"):
        found = read_importance([file])
        assert all(np.array_equal(found[kind], expected[kind]) for kind in KINDS)
    other = config.model_copy(update={"name": "other"})
    assert named(with_importance(other, {}, Console(quiet=True))) == path
    write(tmp_path / "1.safetensors", 7)
    third = config.model_copy(update={"name": "third"})
    assert named(with_importance(third, {}, Console(quiet=True))) != path


def test_a_run_that_goes_on_uses_its_own_file_whatever_became_of_the_others(tmp_path: Path) -> None:
    write(tmp_path / "0.safetensors", 0)
    config = configured(tmp_path, importance={"files": [str(tmp_path / "0.safetensors")]})
    path = named(with_importance(config, {}, Console(quiet=True)))
    content = path.read_bytes()
    path.unlink()
    (tmp_path / "0.safetensors").unlink()
    assert named(with_importance(config, {}, Console(quiet=True))) == path
    assert path.read_bytes() == content


def test_reference_trainings_leave_the_runs_folder_alone(tmp_path: Path) -> None:
    write(tmp_path / "0.safetensors", 0)
    config = configured(tmp_path, importance={"files": [str(tmp_path / "0.safetensors")]})
    assert named(with_importance(config, {}, Console(quiet=True), in_folder=False)).exists()
    assert not config.folder.exists()


@pytest.mark.parametrize("strategy", [{"mask": "none"}, {"type": "full"}])
def test_without_a_mask_nothing_is_measured(strategy: dict[str, Any], tmp_path: Path) -> None:
    config = configured(tmp_path, **strategy)
    assert with_importance(config, {}, Console(quiet=True)) is config
    assert not config.folder.exists()


def test_domains_are_trained_ones(tmp_path: Path) -> None:
    configured(tmp_path, importance={"domains": ["law"]})
    with pytest.raises(ValueError, match=r"importance\.domains: not trained on: general; choose from law, code"):
        configured(tmp_path, importance={"domains": ["general"]})


def test_scores_are_kept_by_what_they_depend_on(tmp_path: Path) -> None:
    class Store:
        fingerprint = "a"

    def file(config: RunConfig) -> Path:
        settings = config.training.strategy.importance  # type: ignore[union-attr]
        return importance._scores_file(config, settings, "law", Store())  # type: ignore[arg-type]

    first = file(configured(tmp_path))
    assert file(configured(tmp_path, layers=[0, 1], importance={"normalisation": "rank", "merge": "max"})) == first
    for settings in ({"num_rows": 5}, {"dropout": 0.1}):
        assert file(configured(tmp_path, importance=settings)) != first
    assert file(configured(tmp_path).model_copy(update={"seed": 1})) != first
    Store.fingerprint = "b"
    assert file(configured(tmp_path)) != first


def test_a_task_measures_the_rows_of_a_token_store(tmp_path: Path) -> None:
    config = load_config(write_run(tmp_path, training__strategy={"type": "cofitune", "importance": {"num_rows": 3}}))
    stores = prepare_stores(config.domains, config.data, config.model, tmp_path / "stores")
    settings = config.training.strategy.importance  # type: ignore[union-attr]
    path = tmp_path / "importance" / "law.safetensors"
    scores = []
    for _ in range(2):
        importance._measure_domain(config.model, stores["law"].train.folder, settings, 2, 0, path)
        scores.append(read_scores(path))
    shapes = {kind: array.shape for kind, array in scores[0].signed_sum.items()}
    assert shapes == {"head": (2, 4), "up": (2, 64), "down": (2, 32)}
    assert 0 < scores[0].num_tokens <= 3 * config.data.max_length
    for kind in KINDS:
        assert np.array_equal(scores[0].signed_sum[kind], scores[1].signed_sum[kind])
        assert (scores[0].absolute_sum[kind] >= np.abs(scores[0].signed_sum[kind])).all()
        assert scores[0].absolute_sum[kind].max() > 0
