"""What travels with a job."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.config import RunConfig
from orchestrator.config_errors import ConfigError
from orchestrator.jobs import package
from orchestrator.jobs.package import write_package
from orchestrator.loading import load_config


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to submit from, with files in it and beside it."""
    folder = tmp_path / "project"
    for path in ("data/a.jsonl", "data/a-eval.jsonl", "base/config.json", "ref.json", "../beside/b.jsonl"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps({"from": path}))
    monkeypatch.chdir(folder)
    return folder


def config(**changes: Any) -> RunConfig:
    data: dict[str, Any] = {
        "name": "n",
        "output_dir": "/shared/runs",
        "model": {"path": "base"},
        "domains": {
            "a": {"train": "data/a.jsonl", "eval": "data/a-eval.jsonl"},
            "b": {"train": ["../beside/b.jsonl", "/shared/b.jsonl"], "eval_fraction": 0.1},
        },
        "mixing": {"type": "versatune", "reference": "ref.json"},
        "training": {"max_steps": 3},
        "cluster": {"address": "1.2.3.4:6379", "num_workers": 2, "runtime_env": {"pip": ["x"]}},
    }
    return RunConfig.model_validate(data | changes)


def test_relative_paths_travel_and_absolute_ones_stay(here: Path, tmp_path: Path, monkeypatch: Any) -> None:
    travels = tmp_path / "package"
    travels.mkdir()
    write_package(config(), travels)
    names = sorted(str(path.relative_to(travels)) for path in travels.rglob("*") if path.is_file())
    assert names == [
        "base/config.json",
        "config.yaml",
        "data/a-eval.jsonl",
        "data/a.jsonl",
        "ref.json",
        "up/beside/b.jsonl",
    ]
    assert json.loads((travels / "up/beside/b.jsonl").read_text()) == {"from": "../beside/b.jsonl"}
    monkeypatch.chdir(travels)
    there = load_config(travels / "config.yaml", check_files=False)
    assert there.domains["b"].train == [Path("up/beside/b.jsonl"), Path("/shared/b.jsonl")]
    assert there.domains["a"].train == [Path("data/a.jsonl")] and there.model.path == "base"
    assert (there.cluster.address, there.cluster.num_workers, there.cluster.runtime_env) == ("auto", 2, {})
    assert there.output_dir == Path("/shared/runs")
    assert there.training == config().training and there.mixing == config().mixing


def test_the_same_configuration_travels_the_same_way_twice(here: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_package(config(), tmp_path / name)
    texts = [(tmp_path / name / "config.yaml").read_text() for name in ("one", "two")]
    assert texts[0] == texts[1] and yaml.safe_load(texts[0])["name"] == "n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_dir": "runs"}, "output_dir: runs is relative; a job needs the absolute path of a folder that all"),
        ({"data": {"cache_dir": "stores"}}, "data.cache_dir: stores is relative"),
        ({"model": {"path": "base"}, "mixing": {"type": "versatune", "reference": "no.json"}}, "no.json: no such file"),
    ],
)
def test_what_cannot_travel_is_told_by_key(here: Path, tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        write_package(config(**changes), tmp_path)
    assert any(message in line for line in caught.value.lines), caught.value.lines


def test_too_much_is_refused_before_anything_is_copied(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "MAX_BYTES", 100)
    target = tmp_path / "package"
    target.mkdir()
    with pytest.raises(ValueError, match="put them on storage that the cluster shares"):
        write_package(config(), target)
    assert not list(target.iterdir())
