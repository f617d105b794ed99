"""A step's gradient: in what precision it is summed, and that one which is not finite changes nothing."""

import functools
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.integration import gradient_cases
from tests.integration.zero_cases import TRAINING, Case, tiny_model
from tests.integration.zero_processes import processes
from tests.soak import few
from workers.engine.checkpoint import latest_checkpoint

STAGES = (0, 1, 2, 3)


def case_of(
    zero_stage: int, dtype: str = "bfloat16", gradient_dtype: str = "float32", max_grad_norm: float = 0
) -> Case:
    deepspeed = {"zero_stage": zero_stage, "gradient_dtype": gradient_dtype}
    one_row_a_pass = {"micro_batch_size": 1, "max_grad_norm": max_grad_norm}
    return Case(tiny_model(), {**TRAINING, **one_row_a_pass, "deepspeed": deepspeed}, dtype)


@functools.cache
def sum_of_passes() -> torch.Tensor:
    return _flat(processes(1).run(gradient_cases.sum_of_passes, case_of(0, gradient_dtype="bfloat16"))[0])


def _flat(gradient: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradient[name] for name in sorted(gradient)])


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("zero_stage", STAGES)
@pytest.mark.parametrize(("gradient_dtype", "low", "high"), [("float32", 0, 1e-6), ("bfloat16", 1e-3, 1e-2)])
def test_bfloat16_gradients_are_summed_in_the_precision_that_is_asked_for(
    gradient_dtype: str, low: float, high: float, zero_stage: int, world_size: int
) -> None:
    case = case_of(zero_stage, gradient_dtype=gradient_dtype)
    parts = [_flat(part) for part in processes(world_size).run(gradient_cases.step_gradient, case)]
    found = parts[0] if zero_stage == 0 else torch.stack(parts).sum(dim=0)  # at stage 0 every rank has all of it
    error = float((found - sum_of_passes()).norm() / sum_of_passes().norm())
    assert low <= error < high


@pytest.mark.parametrize("number", few([math.nan, math.inf], 1))
@pytest.mark.parametrize("max_grad_norm", few([0.5, 0.0], 1))
@pytest.mark.parametrize(("zero_stage", "dtype"), few(itertools.product(STAGES, ["float32", "bfloat16"]), 4))
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_told(
    zero_stage: int, dtype: str, max_grad_norm: float, number: float
) -> None:
    case = case_of(zero_stage, dtype, max_grad_norm=max_grad_norm)
    for norm, has_changed in processes(2).run(gradient_cases.step_on_a_planted_gradient, case, number):
        assert not math.isfinite(norm)
        assert not has_changed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("zero_stage", few([1, 2, 3], 2))
def test_the_same_holds_with_the_optimizer_offloaded(zero_stage: int, dtype: str, tmp_path: Path) -> None:
    file = tmp_path / "offload.json"
    offload = {"device": "cpu", "pin_memory": False}
    file.write_text(json.dumps({"zero_optimization": {"stage": zero_stage, "offload_optimizer": offload}}))
    case = replace(case_of(zero_stage, dtype), training=TRAINING | {"micro_batch_size": 1, "deepspeed": str(file)})
    for norm, has_changed in processes(2).run(gradient_cases.step_on_a_planted_gradient, case, math.nan):
        assert not math.isfinite(norm)
        assert not has_changed
    if dtype == "bfloat16":
        case = replace(case, training={**case.training, "max_grad_norm": 0.0})
        parts = [_flat(part) for part in processes(2).run(gradient_cases.step_gradient, case)]
        assert float((sum(parts) - sum_of_passes()).norm() / sum_of_passes().norm()) < 1e-6


def test_what_had_no_part_in_the_step_has_a_gradient_of_zero() -> None:
    norms = processes(2).run(gradient_cases.step_where_one_parameter_has_a_gradient, case_of(0))
    assert norms == pytest.approx([math.sqrt(97 * 64)] * 2, rel=1e-4)


@pytest.mark.parametrize(
    ("part", "number", "ranks"),
    few([(0, math.nan, [0, 1]), (1, math.nan, [0, 1]), (2, math.inf, [0, 1]), (0, -math.inf, [1])], 2),
)
@pytest.mark.parametrize("zero_stage", STAGES)
def test_no_checkpoint_holds_what_is_not_finite(
    zero_stage: int, part: int, number: float, ranks: list[int], tmp_path: Path
) -> None:
    if len(ranks) == 1 and zero_stage:
        pytest.skip("only at stage 0 a rank has a copy of its own that the others do not see")
    run = gradient_cases.save_with_a_planted_number
    errors = processes(2).run(run, case_of(zero_stage), tmp_path, part, number, ranks)
    name = ("master", "exp_avg", "exp_avg_sq")[part]
    for error in errors:
        assert error.startswith("NonFiniteStateError: the checkpoint of step 3 was not written: 1 tensors contain NaN")
        assert f"{name} of model.layers.1.mlp.up_proj.weight (1 numbers)" in error
    assert latest_checkpoint(tmp_path) == tmp_path / "step-00000002"
    assert not (tmp_path / "step-00000003").exists()
