"""A run's folder: one driver at a time, one configuration for good."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.sweep import SweepConfig
from orchestrator.runs.lock import ClaimError, claim_folder

_ROOT = Path(__file__).parents[3]


def config(folder: Path, **changes: Any) -> SweepConfig:
    data: dict[str, Any] = {
        "name": "r",
        "output_dir": str(folder),
        "model": {"path": "o/m"},
        "domains": {"a": {"train": "a.jsonl"}, "b": {"train": "b.jsonl"}},
        "mixing": {"type": "versatune", "sigma": 0.5},
        "training": {"max_steps": 10},
    }
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        group = data
        for parent in parents:
            group = group.setdefault(parent, {})
        group[last] = value
    return SweepConfig.model_validate(data)


def claim(settings: SweepConfig) -> str:
    with claim_folder(settings) as run_id:
        return run_id


TRACES = [
    "metrics.jsonl",
    "feedback/00000000.json",
    "weights/000001.json",
    "checkpoints/step-00000003/state.json",
    "checkpoints/.step-00000003-abc/state.json",
    "samples.jsonl",
    "model/config.json",
    "best/config.json",
    "summary.json",
    "stages.json",
    "study/results.csv",
    "trial.json",
    "requests/a.json",
    "tensorboard/events/x",
    "something-of-the-user.txt",
]


def train_something(folder: Path, trace: str = "metrics.jsonl") -> None:
    path = folder / trace
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}\n")


def prepare_only(folder: Path) -> None:
    """What a run leaves that was refused before its first evaluation."""
    for name in ("weights", "feedback", "checkpoints"):
        (folder / name).mkdir()
    (folder / "weights" / "000000.json").write_text("{}")
    (folder / "attempt.json").write_text('{"attempt": 3}')
    for name in (
        "raymix.log",
        "events.jsonl",
        "mixing.jsonl",
        "reference.json",
        "failure.json",
        "importance.safetensors",
    ):
        (folder / name).write_text("of the first try\n")
    (folder / "metrics.jsonl").touch()


def test_a_run_that_never_trained_may_be_mended(tmp_path: Path) -> None:
    first = claim(config(tmp_path))
    folder = tmp_path / "r"
    prepare_only(folder)
    mended = config(tmp_path, mixing__sigma=0.7)
    assert claim(mended) not in (first, "")
    assert SweepConfig.model_validate_json((folder / "config.json").read_bytes()) == mended
    # What was made for the first configuration is gone; the log and the fence against its workers stay.
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        "attempt.json", "config.json", "events.jsonl", "raymix.log"
    ]  # fmt: skip
    assert json.loads((folder / "attempt.json").read_text())["attempt"] == 3
    assert "mixing.sigma: was 0.5, is 0.7" in json.loads((folder / "events.jsonl").read_text())["message"]


def test_the_same_configuration_keeps_what_was_prepared(tmp_path: Path) -> None:
    claim(config(tmp_path))
    prepare_only(tmp_path / "r")
    claim(config(tmp_path))
    assert (tmp_path / "r" / "reference.json").exists() and (tmp_path / "r" / "weights" / "000000.json").exists()


@pytest.mark.parametrize("trace", TRACES)
def test_whatever_was_trained_keeps_the_folder(tmp_path: Path, trace: str) -> None:
    claim(config(tmp_path))
    folder = tmp_path / "r"
    train_something(folder, trace)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ClaimError, match="started with another configuration"):
        claim(config(tmp_path, seed=1))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files


def test_a_plan_with_a_trained_stage_keeps_its_folder(tmp_path: Path) -> None:
    stages = [{"name": "one", "domains": ["a"]}, {"name": "two", "domains": ["b"]}]
    claim(config(tmp_path, stages=stages))
    (tmp_path / "stages" / "two-0123").mkdir(parents=True)
    (tmp_path / "stages" / "two-0123" / "config.json").write_text("{}")
    claim(config(tmp_path, stages=stages, seed=1))
    train_something(tmp_path / "stages" / "two-0123")
    with pytest.raises(ClaimError, match="started with another configuration"):
        claim(config(tmp_path, stages=stages, seed=2))


def test_a_driver_that_is_at_it_is_not_disturbed_by_a_mended_configuration(tmp_path: Path) -> None:
    with claim_folder(config(tmp_path)):
        prepare_only(tmp_path / "r")
        with pytest.raises(ClaimError, match="another process is already training this run"):
            claim(config(tmp_path, seed=1))
        assert (tmp_path / "r" / "reference.json").exists()


def test_a_second_driver_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    with claim_folder(config(tmp_path)):
        code = (
            "import sys; from pathlib import Path; from orchestrator.config.sweep import SweepConfig\n"
            "from orchestrator.runs.lock import claim_folder\n"
            "with claim_folder(SweepConfig.model_validate_json(Path(sys.argv[1]).read_bytes())): pass"
        )
        other = [sys.executable, "-c", code, str(tmp_path / "r" / "config.json")]
        refused = subprocess.run(other, cwd=_ROOT, capture_output=True, text=True, check=False)
        assert refused.returncode == 1 and "another process is already training this run" in refused.stderr
        with pytest.raises(ClaimError, match="another process"):
            claim(config(tmp_path))
    assert subprocess.run(other, cwd=_ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"mixing__sigma": 0.7}, "mixing.sigma: was 0.5, is 0.7"),
        ({"training__max_steps": 11}, "training.max_steps: was 10, is 11"),
        ({"seed": 1}, "seed: was 0, is 1"),
        ({"mixing": {"type": "uniform"}}, "mixing.type: was 'versatune', is 'uniform'"),
        ({"domains__c": {"train": "c.jsonl"}}, "domains.c.train: was not given, is ['c.jsonl']"),
        ({"domains__b": {"train": ["x", "b.jsonl"]}}, "domains.b.train: was ['b.jsonl'], is ['x', 'b.jsonl']"),
        (
            {"domains": {"b": {"train": "b.jsonl"}, "a": {"train": "a.jsonl"}}},
            "order of domains: was ['a', 'b'], is ['b', 'a']",
        ),
    ],
)
def test_a_changed_key_is_named_with_both_values(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    claim(config(tmp_path))
    train_something(tmp_path / "r")
    begun = (tmp_path / "r" / "config.json").read_bytes()
    with pytest.raises(ClaimError, match="started with another configuration") as error:
        claim(config(tmp_path, **changes))
    assert f"  {line}" in str(error.value).splitlines()
    assert (tmp_path / "r" / "config.json").read_bytes() == begun
    claim(config(tmp_path))  # put back, it goes on


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster__num_workers": 4},
        {"cluster__address": "auto"},
        {"training__checkpoint_every": 3},
        {"training__sequence_parallel": 2, "cluster__num_workers": 2, "reference__num_workers": 2},
        {"training__keep_checkpoints": 9},
        {"data__log_samples": True},
        {"data__cache_dir": "elsewhere"},
        {"reference__num_workers": 2},
    ],
)
def test_what_is_not_computed_may_change(tmp_path: Path, changes: dict[str, Any]) -> None:
    run_id = claim(config(tmp_path))
    assert claim(config(tmp_path, **changes)) == run_id
    assert claim(config(tmp_path)) == run_id


def test_runs_of_other_folders_or_configurations_have_other_ids(tmp_path: Path) -> None:
    runs = [config(tmp_path / "x"), config(tmp_path / "y"), config(tmp_path / "z", seed=1), config(tmp_path, name="s")]
    assert len({claim(run) for run in runs}) == len(runs)


def test_a_fault_inside_gives_the_folder_back(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="inside"), claim_folder(config(tmp_path)):
        raise RuntimeError("inside")
    claim(config(tmp_path))
