"""The resolved configuration: defaults, folders, and its own JSON."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.config.sweep import SweepConfig


def config(**changes: Any) -> SweepConfig:
    data: dict[str, Any] = {
        "name": "r",
        "model": {"path": "o/m"},
        "domains": {"a": {"train": "a.jsonl"}, "b": {"hub": {"path": "o/d"}}},
        "mixing": {"type": "uniform"},
        "training": {"max_steps": 10},
    }
    return SweepConfig.model_validate(data | changes)


@pytest.mark.parametrize(
    "mixing",
    [
        {"type": "fixed", "shares": {"a": 0.1, "b": 0.9}},
        {"type": "versatune", "reference": "losses.json", "initial": {"a": 0.1, "b": 0.9}},
        {"type": "versatune", "reference": {"a": 1, "b": 2}, "update": "loss"},
        {"type": "temperature", "tau": 3},
    ],
)
def test_it_survives_its_own_json(mixing: dict[str, Any]) -> None:
    resolved = config(mixing=mixing, training={"epochs": 1.5, "strategy": {"type": "lora"}, "deepspeed": "ds.json"})
    again = SweepConfig.model_validate_json(resolved.model_dump_json())
    assert again == resolved and list(again.domains) == ["a", "b"]


def test_folders() -> None:
    assert config().folder == Path("runs/r") and config().cache_dir == Path("runs/token-stores")
    assert config(data={"cache_dir": "c"}).cache_dir == Path("c")


def test_one_file_may_stand_alone_or_in_a_list() -> None:
    assert config().domains["a"].train == [Path("a.jsonl")]


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b", "-x", "a\n", "x" * 101])
def test_names_are_safe_as_file_names(name: str) -> None:
    with pytest.raises(ValidationError):
        config(name=name)
    with pytest.raises(ValidationError):
        config(domains={name: {"train": "a.jsonl"}})


@pytest.mark.parametrize(("rows", "ranks", "micro", "near"), [(128, 3, 4, 120), (4, 8, 4, 32), (96, 5, 4, 80)])
def test_the_batch_size_that_an_error_names_is_accepted(rows: int, ranks: int, micro: int, near: int) -> None:
    training = {"max_steps": 1, "global_batch_size": rows, "micro_batch_size": micro}
    with pytest.raises(ValidationError, match=f"use for example {near}"):
        config(training=training, cluster={"num_workers": ranks})
    config(training=training | {"global_batch_size": near}, cluster={"num_workers": ranks})


def test_workers_that_share_sequences_count_as_one() -> None:
    training = {"max_steps": 1, "global_batch_size": 8, "micro_batch_size": 4, "sequence_parallel": 2}
    assert config(training=training, cluster={"num_workers": 4}).num_data_ranks == 2
    with pytest.raises(
        ValidationError, match=r"8 is not divisible by cluster\.num_workers 6 / .* x .* 4 = 12; .* example 12"
    ):
        config(training=training, cluster={"num_workers": 6})


@pytest.mark.parametrize(("workers", "key"), [(3, "cluster.num_workers"), ({"min": 3, "max": 8}, ".*num_workers.min")])
def test_the_workers_must_be_whole_groups(workers: Any, key: str) -> None:
    training = {"max_steps": 1, "sequence_parallel": 2}
    with pytest.raises(ValidationError, match=rf"{key}: 3 is not a multiple of .*_parallel 2, .* example 4"):
        config(training=training, cluster={"num_workers": workers})


def test_the_workers_of_references_must_be_too() -> None:
    training = {"max_steps": 1, "sequence_parallel": 2}
    settings: dict[str, Any] = {"training": training, "cluster": {"num_workers": 2}, "mixing": {"type": "versatune"}}
    with pytest.raises(ValidationError, match=r"reference\.num_workers: 1 is not a multiple of .* use for example 2"):
        config(**settings)
    assert config(**settings, reference={"num_workers": 2}).reference.num_workers == 2


@pytest.mark.parametrize(
    ("cluster", "rows", "slices", "sizes"),
    [
        ({"num_workers": 4}, 32, 1, [4]),
        ({"num_workers": {"min": 2, "max": 8}}, 32, 1, [2, 4, 8]),
        ({"num_workers": {"min": 1, "max": 6}}, 48, 1, [1, 2, 3, 4, 6]),
        ({"num_workers": {"min": 2, "max": 3}}, 32, 1, [2]),
        ({"num_workers": {"min": 2, "max": 9}}, 12, 2, [2, 6]),
    ],
)
def test_a_group_has_sizes_among_which_a_step_can_be_divided(
    cluster: dict[str, Any], rows: int, slices: int, sizes: list[int]
) -> None:
    training = {"max_steps": 1, "global_batch_size": rows, "micro_batch_size": 4, "sequence_parallel": slices}
    resolved = config(cluster=cluster, training=training)
    assert resolved.group_sizes == sizes
    assert resolved.model_dump(mode="json")["cluster"]["num_workers"] == cluster["num_workers"]
    assert type(resolved).model_validate_json(resolved.model_dump_json()) == resolved
    assert resolved.cluster.replaced(max_failures=9).num_workers == resolved.cluster.num_workers


LARGEST_SEED = 2**64 - 1


@pytest.mark.parametrize("seed", [-1, 2**64, 10**30])
@pytest.mark.parametrize("place", ["seed", "sample_seed", "stages"])
def test_a_seed_of_more_than_64_bits_or_below_0_is_an_error_of_its_key(place: str, seed: int) -> None:
    changes: dict[str, Any] = {
        "seed": {"seed": seed},
        "sample_seed": {"data": {"sample_seed": seed}},
        "stages": {"stages": [{"name": "one", "domains": ["a", "b"], "seed": seed}]},
    }[place]
    with pytest.raises(ValidationError, match=r"greater than or equal to 0|less than 18446744073709551616") as caught:
        config(**changes)
    assert "seed" in [str(part) for part in caught.value.errors()[0]["loc"]] or place == "sample_seed"


def test_the_largest_seed_works_wherever_a_seed_is_used() -> None:
    import numpy as np
    import torch

    from orchestrator.config.detection import ClassifierJudgeConfig
    from orchestrator.prepare.detection.judges import build_judge
    from orchestrator.prepare.detection.judges.base import JudgeContext
    from orchestrator.probe.geometry import describe_geometry
    from orchestrator.searches.regmix import predict_best_mix
    from workers.data.permutation import derive_key, permutation
    from workers.settings import narrow_seed

    seed = config(seed=LARGEST_SEED).seed
    assert sorted(permutation(derive_key(seed, "step"), 5)) == [0, 1, 2, 3, 4]
    torch.manual_seed(seed)
    assert narrow_seed(seed) < 2**32 and narrow_seed(2**32 - 1) == 2**32 - 1
    rng = np.random.default_rng(seed)
    describe_geometry(rng.normal(size=(20, 4)), np.repeat(np.arange(2), 10), seed)
    shares_ND = rng.dirichlet(np.ones(3), 12)
    predict_best_mix(shares_ND, shares_ND**2, lambda losses_ND: losses_ND.mean(axis=1), 1.0, seed)
    windows = {name: [f"{name} {word}" for word in "abcdefghijkl"] for name in ("law", "code")}
    context = JudgeContext(["law", "code"], lambda: windows, config().cluster, seed)
    assert list(build_judge(ClassifierJudgeConfig(), context).answers(["law a"]))
