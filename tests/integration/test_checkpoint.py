"""Checkpoints: going on from one is the undisturbed run, at any stage and world size; torn ones are never used."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.integration import zero_cases
from tests.integration.zero_cases import LORA, Case, tiny_model, training_of
from tests.integration.zero_processes import processes
from tests.soak import few
from workers.engine.checkpoint import latest_checkpoint

LAST = 8
VARIANTS = {
    **{f"stage {stage}": ({"zero_stage": stage}, "float32", {}) for stage in range(4)},
    **{f"stage {stage}, bf16": ({"zero_stage": stage}, "bfloat16", {}) for stage in range(4)},
    **{f"stage {stage}, lora": ({"zero_stage": stage}, "float32", {"strategy": LORA}) for stage in (0, 2, 3)},
    **{f"stage {stage}, lora, bf16": ({"zero_stage": stage}, "bfloat16", {"strategy": LORA}) for stage in (0, 1, 3)},
    **{
        f"stage {stage}, bf16 sums": ({"zero_stage": stage, "gradient_dtype": "bfloat16"}, "bfloat16", {})
        for stage in range(4)
    },
}


def assert_equal_bits(result: dict[str, Any], expected: dict[str, Any]) -> None:
    assert result["losses"] == expected["losses"][4:]
    assert result["norms"] == expected["norms"][4:]
    assert result["final"] == expected["final"]
    for name, tensors in expected["masters"].items():
        for part, tensor in enumerate(tensors):
            assert torch.equal(result["masters"][name][part], tensor), (name, part)


@pytest.mark.parametrize("variant", few(VARIANTS, 7))
def test_going_on_is_the_undisturbed_run_bit_for_bit(variant: str, tmp_path: Path) -> None:
    deepspeed, dtype, changes = VARIANTS[variant]
    training = {**zero_cases.TRAINING, "deepspeed": deepspeed, **changes}
    undisturbed = processes(2).run(zero_cases.train, Case(tiny_model(), training, dtype, LAST, save={4: tmp_path}))
    resumed = processes(2).run(
        zero_cases.train, Case(tiny_model(), training, dtype, LAST, 5, load=tmp_path / "step-00000004")
    )
    assert_equal_bits(resumed[0], undisturbed[0])
    assert resumed[1]["state"] == {"step": 4, "note": "caller's own"}


@pytest.mark.parametrize(("dtype", "tolerance"), few([("float32", 1e-5), ("bfloat16", 1e-2)], 1))
@pytest.mark.parametrize(
    ("saved", "loaded"),
    [((2, 3), (1, 3)), ((1, 2), (2, 2)), ((2, 2), (2, 3)), ((2, 3), (1, 0)), ((1, 0), (2, 1)), ((2, 1), (1, 2))],
)
def test_another_world_size_or_stage_goes_on(
    saved: tuple[int, int], loaded: tuple[int, int], dtype: str, tolerance: float, tmp_path: Path
) -> None:
    case = Case(tiny_model(), training_of(saved[1]), dtype, LAST, save={4: tmp_path})
    undisturbed = processes(saved[0]).run(zero_cases.train, case)[0]
    case = Case(tiny_model(), training_of(loaded[1]), dtype, LAST, 5, load=tmp_path / "step-00000004")
    resumed = processes(loaded[0]).run(zero_cases.train, case)[0]
    np.testing.assert_allclose(resumed["losses"], undisturbed["losses"][4:], rtol=0, atol=tolerance)
    np.testing.assert_allclose(resumed["final"], undisturbed["final"], rtol=0, atol=tolerance)


def test_many_shards_are_one_checkpoint(tmp_path: Path) -> None:
    losses = processes(2).run(zero_cases.train_in_small_shards, Case(tiny_model(), training_of(3)), tmp_path)[0]
    assert len(list((tmp_path / "step-00000004").glob("*.safetensors"))) > 5
    assert losses[0] == losses[1]


def test_another_model_is_refused_on_all_ranks_with_a_name(tmp_path: Path) -> None:
    processes(2).run(zero_cases.train, Case(tiny_model(), training_of(2), last_step=4, save={4: tmp_path}))
    case = Case(tiny_model(), training_of(2, strategy=LORA), load=tmp_path / "step-00000004")
    for error in processes(2).run(zero_cases.error_of_training, case):
        assert "is for another model or strategy" in error
        assert "absent in the checkpoint" in error


@pytest.mark.parametrize("fault", ["shard", "rename", "state"])
def test_a_disk_error_is_raised_on_all_ranks_and_keeps_the_previous_checkpoint(fault: str, tmp_path: Path) -> None:
    first = Case(tiny_model(), training_of(2), last_step=4, save={4: tmp_path})
    processes(2).run(zero_cases.train, first)
    second = Case(tiny_model(), training_of(2), last_step=5, save={5: tmp_path})
    errors = processes(2).run(zero_cases.save_on_a_failing_disk, second, fault)
    assert all("No space left" in error for error in errors)
    warnings: list[str] = []
    assert latest_checkpoint(tmp_path, warnings.append) == tmp_path / "step-00000004"
    assert warnings == []
    processes(2).run(zero_cases.train, Case(tiny_model(), training_of(2), last_step=4, save={3: tmp_path, 4: tmp_path}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_old_checkpoints_go_after_the_new_one_is_there(tmp_path: Path) -> None:
    case = Case(tiny_model(), training_of(1), last_step=4, save={step: tmp_path for step in (1, 2, 3, 4)})
    processes(1).run(zero_cases.train, case)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
    manifest = json.loads((tmp_path / "step-00000004" / "manifest.json").read_text())
    assert set(manifest["files"]) == {"state.json", "trainable-00000.safetensors"}
