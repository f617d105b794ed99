"""What a local run wants and this machine has not, told by key before anything starts."""

import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.config import machine
from orchestrator.config.cluster import ClusterConfig
from orchestrator.config.errors import ConfigError
from orchestrator.config.load import load_config
from orchestrator.config.machine import crowding
from orchestrator.sweeps.compare.driver import compare
from tests.runs import raymix, write_run

# ruff: noqa: E501  a table of messages as they are


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_count_gpus", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ({"gpus_per_worker": 1, "num_workers": 4}, "cluster.num_workers 4 x 1 = 4 GPUs, but this machine has 2; lower the number of workers to 2, or name a cluster in cluster.address"),
        ({"gpus_per_worker": 8}, "cluster.num_workers 1 x 8 = 8 GPUs, but this machine has 2; lower it to at most 2"),
        ({"gpus_per_worker": 2, "num_workers": 2}, "2 x 2 = 4 GPUs, but this machine has 2; lower the number of workers to 1"),
        ({"gpus_per_worker": 1, "num_workers": 2}, None),
        ({"gpus_per_worker": 0.5, "num_workers": 4}, None),
        ({"gpus_per_worker": 0.5, "num_workers": 8}, "8 x 0.5 = 4 GPUs, but this machine has 2; lower the number of workers to 4"),
        ({"gpus_per_worker": 8, "address": "auto"}, None),
        ({"gpus_per_worker": 1.5}, "cluster.gpus_per_worker: is 1.5; above one, Ray takes whole GPUs only: use 1 or 2"),
    ],
)  # fmt: skip
def test_more_gpus_than_there_are(tmp_path: Path, cluster: dict[str, Any], words: str | None) -> None:
    file = write_run(tmp_path, cluster=cluster, training__micro_batch_size=1)
    if words is None:
        load_config(file)
        return
    with pytest.raises(ConfigError) as error:
        load_config(file)
    (line,) = error.value.lines
    assert words in line and f"{file}:" in line and "cluster.gpus_per_worker: " in line


@pytest.mark.usefixtures("two_gpus")
def test_reference_losses_have_workers_of_their_own(tmp_path: Path) -> None:
    changes = {"cluster": {"gpus_per_worker": 1}, "reference": {"num_workers": 4}}
    load_config(write_run(tmp_path, **changes))
    with pytest.raises(ConfigError, match=r"reference\.num_workers 4 x 1 = 4 GPUs, but this machine has 2"):
        load_config(write_run(tmp_path, **changes, mixing__reference="computed"))
    load_config(write_run(tmp_path, **changes, mixing__reference="computed", mixing__update="loss"))  # needs none


@pytest.mark.usefixtures("two_gpus")
def test_a_variant_that_wants_more_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    variants = {"one": {"cluster.gpus_per_worker": 1}, "many": {"cluster.gpus_per_worker": 3}}
    config = load_config(write_run(tmp_path, compare={"variants": variants}))
    with pytest.raises(ConfigError) as error:
        compare(config, ["one", "many"], 1, Console(quiet=True))
    (line,) = error.value.lines
    assert line.startswith("many-seed0: cluster.gpus_per_worker: cluster.num_workers 2 x 3 = 6 GPUs")
    assert not (tmp_path / "runs").exists()


def test_too_few_cpus_are_shared_and_that_is_told() -> None:
    there = os.cpu_count() or 1
    assert crowding(ClusterConfig(num_workers=there)) is None
    assert crowding(ClusterConfig(address="auto", num_workers=10 * there)) is None
    said = crowding(ClusterConfig(num_workers=there, cpus_per_worker=3))
    assert said is not None and f"= {3 * there} CPUs, but this machine has {there}" in said


@pytest.mark.parametrize("verb", ["check", "run", "compare"])
def test_the_command_says_it_at_once(tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = raymix(verb, write_run(tmp_path), "--set", "cluster.gpus_per_worker=1", timeout_s=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("--set cluster.gpus_per_worker=1: cluster.num_workers 2 x 1 = 2 GPUs, but this ")
    assert "has 0 (CUDA_VISIBLE_DEVICES is ''); set it to 0 to train on the CPU" in done.stderr
    assert not (tmp_path / "runs").exists()
