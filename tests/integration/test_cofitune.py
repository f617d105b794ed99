"""CoFiTune on the real engine: what is frozen stays, what is masked moves as in plain torch, at every ZeRO stage."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.integration import masked_training, zero_cases
from tests.integration.masked_training import (
    base_weights,
    fused_model,
    importance_file,
    rows_of_llama,
    strategy,
    train_masked_in_plain_torch,
)
from tests.integration.zero_cases import Case, tiny_model, training_of
from tests.integration.zero_processes import processes
from workers.strategies.cofitune.importance import read_importance

NUM_STEPS = 4
TOLERANCE = 1e-6
SHARED = {"qkv_proj": (4 * 8 + 2 * 8, 4 * 8 + 2 * 2 * 8), "gate_up_proj": (51, 102)}  # rows of v and of up


@functools.cache
def llama_reference(mode: str) -> dict[str, Any]:
    importance = read_importance([importance_file()])

    def keeps(name: str, p: torch.Tensor) -> torch.Tensor:
        return torch.tensor(float("layers.1." in name and "_proj" in name))

    def rows(name: str, p: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(rows_of_llama(dict(importance), name)).float().view(-1, *[1] * (p.ndim - 1))

    return train_masked_in_plain_torch(tiny_model(), keeps, rows, mode, NUM_STEPS)


def assert_equals(result: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(result["masters"]) == set(expected["masters"])
    np.testing.assert_allclose(result["losses"], expected["losses"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(result["final"], expected["final"], rtol=0, atol=TOLERANCE)
    for name, master in result["masters"].items():
        difference = (master - expected["masters"][name]).abs()
        # Adam turns the last bit of a gradient that is nearly 0 into a visible part of a step: in a few elements.
        assert difference.quantile(0.99) < TOLERANCE, name
        assert difference.max() < 1e-4, name


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_masked_updates_equal_plain_torch(zero_stage: int, world_size: int) -> None:
    case = Case(tiny_model(), training_of(zero_stage, strategy=strategy()), last_step=NUM_STEPS)
    result = processes(world_size).run(masked_training.train_watched, case)[0]
    assert_equals(result, llama_reference("update"))
    assert np.abs(np.array(result["final"]) - llama_reference("none")["final"]).max() > 100 * TOLERANCE

    importance, base = dict(read_importance([importance_file()])), base_weights(tiny_model())
    for name, master in result["masters"].items():
        rows = rows_of_llama(importance, name)
        assert torch.equal(master[rows == 1], base[name][rows == 1]), name
        assert rows.min() == 1 or not torch.equal(master[rows < 1], base[name][rows < 1]), name


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_masked_gradients_equal_plain_torch(zero_stage: int) -> None:
    case = Case(tiny_model(), training_of(zero_stage, strategy=strategy(mask="gradient")), last_step=NUM_STEPS)
    assert_equals(processes(2).run(masked_training.train_watched, case)[0], llama_reference("gradient"))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_many_small_pieces_equal_plain_torch(checkpointing: bool, tmp_path: Path) -> None:
    zero = {"stage": 3, "sub_group_size": 3000, "stage3_param_persistence_threshold": 0}
    file = tmp_path / "zero3.json"
    file.write_text(json.dumps({"zero_optimization": zero}))
    training = {**zero_cases.TRAINING, "deepspeed": str(file), "activation_checkpointing": checkpointing}
    case = Case(tiny_model(), {**training, "strategy": strategy()}, last_step=NUM_STEPS)
    assert_equals(processes(2).run(masked_training.train_watched, case)[0], llama_reference("update"))


@functools.cache
def fused_importance() -> Path:
    return importance_file(2, 4, 51, 32)


@functools.cache
def fused_reference(mode: str) -> dict[str, Any]:
    importance = dict(read_importance([fused_importance()]))

    def keeps(name: str, p: torch.Tensor) -> torch.Tensor:
        kept = torch.zeros(len(p), *[1] * (p.ndim - 1))
        for part, (first, last) in SHARED.items():
            if "layers.1." in name and part in name:
                kept[first:last] = 1.0
        return kept

    def rows(name: str, p: torch.Tensor) -> torch.Tensor:
        important = torch.zeros(len(p), 1)
        head = importance["head"][1]
        if "qkv_proj" in name:
            important[48:] = torch.tensor([max(head[0], head[1]), max(head[2], head[3])]).repeat_interleave(8)[:, None]
        else:
            important[51:] = torch.from_numpy(importance["up"][1])[:, None]
        return important

    return train_masked_in_plain_torch(fused_model(), keeps, rows, mode, NUM_STEPS)


@pytest.mark.parametrize(("zero_stage", "mask"), [(0, "none"), (2, "none"), (3, "update")])
def test_part_of_a_shared_matrix_trains_alone(zero_stage: int, mask: str) -> None:
    settings = strategy(fused_importance(), modules=["v", "up"], mask=mask)
    case = Case(fused_model(), training_of(zero_stage, strategy=settings), last_step=NUM_STEPS)
    result = processes(2).run(masked_training.train_watched, case)[0]
    assert_equals(result, fused_reference(mask))
    base = base_weights(fused_model())
    for name, master in result["masters"].items():
        first, last = next(rows for part, rows in SHARED.items() if part in name)
        assert torch.equal(master[:first], base[name][:first]), name
        assert not torch.equal(master[first:last], base[name][first:last]), name


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_bfloat16_masters_are_masked(zero_stage: int) -> None:
    case = Case(tiny_model(), training_of(zero_stage, strategy=strategy()), "bfloat16", NUM_STEPS)
    result = processes(2).run(masked_training.train_watched, case)[0]
    importance, base = dict(read_importance([importance_file()])), base_weights(tiny_model())
    for name, master in result["masters"].items():
        rows, start = rows_of_llama(importance, name), base[name].bfloat16().float()
        assert master.dtype == torch.float32
        assert torch.equal(master[rows == 1], start[rows == 1]), name
        assert rows.min() == 1 or not torch.equal(master[rows < 1], start[rows < 1]), name


def test_what_is_observed_is_the_same_on_all_ranks_and_at_all_stages() -> None:
    changes = []
    for zero_stage, world_size in ((0, 1), (3, 2)):
        case = Case(tiny_model(), training_of(zero_stage, strategy=strategy()), last_step=3)
        results = processes(world_size).run(masked_training.train_watched, case)
        assert all(result["observed"] == results[0]["observed"] for result in results)
        changes.append([list(seen["mask"]["mean_update"].values()) for seen in results[0]["observed"]])
    np.testing.assert_allclose(changes[1], changes[0], rtol=1e-3)
    assert np.all(np.array(changes)[:, :, 9] < 0.1 * np.array(changes)[:, :, 0])


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_going_on_is_the_undisturbed_run_and_the_model_keeps_what_is_frozen(zero_stage: int, tmp_path: Path) -> None:
    training = training_of(zero_stage, strategy=strategy())
    case = Case(tiny_model(), training, last_step=6, save={3: tmp_path}, export={6: tmp_path / "model"})
    undisturbed = processes(2).run(zero_cases.train, case)[0]
    case = Case(tiny_model(), training, "float32", 6, 4, load=tmp_path / "step-00000003")
    resumed = processes(2).run(zero_cases.train, case)[0]
    assert resumed["losses"] == undisturbed["losses"][3:]
    assert resumed["final"] == undisturbed["final"]
    base, exported = base_weights(tiny_model()), base_weights(tmp_path / "model")
    for name, tensors in undisturbed["masters"].items():
        assert all(torch.equal(*pair) for pair in zip(tensors, resumed["masters"][name], strict=True)), name
        assert torch.equal(exported[name], tensors[0]), name
    frozen = exported.keys() - undisturbed["masters"].keys()
    assert len(frozen) > len(undisturbed["masters"])
    assert all(torch.equal(exported[name], base[name]) for name in frozen)


def test_the_optimizer_holds_only_what_trains() -> None:
    for zero_stage in (0, 2, 3):
        settings = strategy(modules=["down"], mask="none")
        case = Case(tiny_model(), training_of(zero_stage, strategy=settings), last_step=1)
        results = processes(2).run(masked_training.train_watched, case)
        num_trained = 64 * 127 + 64
        held = sum(result["num_stepped"] for result in results) / (2 if zero_stage == 0 else 1)
        assert num_trained <= held <= num_trained + 64
        assert results[0]["observed"] == []


def test_importance_of_another_model_or_none_is_refused_with_a_remedy() -> None:
    other = Case(tiny_model(), training_of(2, strategy=strategy(importance_file(2, 4, 128, 64))))
    for error in processes(2).run(masked_training.error_of_building, other):
        assert "not for this model: layer 1 has 127 units in gate, the file has 2 layers of 128" in error
    shallow = Case(tiny_model(), training_of(2, strategy=strategy(importance_file(1, 4, 127, 64))))
    assert "the file has 1 layers" in processes(2).run(masked_training.error_of_building, shallow)[0]
    without = Case(tiny_model(), training_of(2, strategy={"type": "cofitune", "layers": [0.5, 1]}))
    assert "needs importance" in processes(2).run(masked_training.error_of_building, without)[0]
