"""The engine: every ZeRO stage and world size computes what plain torch computes, packed or not."""

import functools
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.integration import zero_cases
from tests.integration.plain_training import example_nats, train_in_plain_torch
from tests.integration.zero_cases import Case, tiny_model, training_of
from tests.integration.zero_processes import processes
from tests.soak import few

STAGES = (0, 1, 2, 3)


@functools.cache
def reference() -> dict[str, Any]:
    return train_in_plain_torch(tiny_model())


@pytest.mark.parametrize("world_size", few([2, 1], 1))
@pytest.mark.parametrize("zero_stage", STAGES)
def test_twenty_steps_equal_plain_torch(zero_stage: int, world_size: int) -> None:
    case = Case(tiny_model(), training_of(zero_stage), measure_every=5)
    result = processes(world_size).run(zero_cases.train, case)[0]
    np.testing.assert_allclose(result["losses"], reference()["losses"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(result["norms"], reference()["norms"], rtol=1e-4)


@pytest.mark.parametrize("way", few(["mask", "lengths", "separate"], 2))
@pytest.mark.parametrize("zero_stage", few([3, 1], 1))
def test_every_way_of_keeping_examples_apart_trains_alike(zero_stage: int, way: str) -> None:
    """With single examples the ranks have unlike numbers of forward passes, of which each is a collective."""
    case = Case(tiny_model(), training_of(zero_stage), measure_every=5, way=way)
    result = processes(2).run(zero_cases.train, case)[0]
    np.testing.assert_allclose(result["losses"], reference()["losses"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(result["norms"], reference()["norms"], rtol=1e-4)


@pytest.mark.parametrize(
    "changes", [{"micro_batch_size": 1}, {"micro_batch_size": 4}, {"activation_checkpointing": True}]
)
@pytest.mark.parametrize("zero_stage", few([3, 2], 1))
def test_micro_batches_and_checkpointing_change_no_loss(zero_stage: int, changes: dict[str, Any]) -> None:
    case = Case(tiny_model(), training_of(zero_stage, **changes), last_step=6)
    result = processes(2).run(zero_cases.train, case)[0]
    np.testing.assert_allclose(result["losses"], reference()["losses"][:6], rtol=0, atol=1e-4)
    np.testing.assert_allclose(result["norms"], reference()["norms"][:6], rtol=1e-4)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_packing_changes_no_example(is_training: bool, checkpointing: bool) -> None:
    from transformers import AutoModelForCausalLM

    case = Case(tiny_model(), training_of(1, activation_checkpointing=checkpointing, micro_batch_size=4))
    packed = processes(1).run(zero_cases.nats_of_examples, case, is_training)[0]
    model = AutoModelForCausalLM.from_pretrained(tiny_model(), dtype=torch.float32)
    batch = zero_cases.global_batch(1)
    for row in range(8):
        for number, nats in enumerate(example_nats(model, batch, row)[:3]):
            assert packed[row][number] == pytest.approx(float(nats.detach()), abs=1e-5 * 13)  # 13 tokens at most


def test_head_on_loss_positions_only_changes_nothing() -> None:
    case = Case(tiny_model(), training_of(0))
    kept, full, gradient_difference = processes(1).run(zero_cases.losses_with_and_without_logits_to_keep, case)[0]
    np.testing.assert_allclose(kept, full, rtol=1e-6)
    assert gradient_difference < 1e-6


@pytest.mark.parametrize(("zero_stage", "dtype"), few(itertools.product(STAGES, ["float32", "bfloat16"]), 2))
def test_losses_in_chunks_train_as_plain_torch(zero_stage: int, dtype: str) -> None:
    """The ranks need unlike numbers of chunks, and at stage 3 gather the head for all of them together."""
    case = Case(tiny_model(), training_of(zero_stage), dtype=dtype, measure_every=5, targets_in_chunk=5)
    result = processes(2).run(zero_cases.train, case)[0]
    loss_tolerance, norm_tolerance = (1e-4, 1e-4) if dtype == "float32" else (0.03, 0.02)
    np.testing.assert_allclose(result["losses"], reference()["losses"], rtol=0, atol=loss_tolerance)
    np.testing.assert_allclose(result["norms"], reference()["norms"], rtol=norm_tolerance)


def nothing_stays_gathered(folder: Path) -> dict[str, Any]:
    """Stage 3 where every weight is partitioned, however small: by default all of a tiny model stay gathered."""
    file = folder / "zero3.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}))
    return {"zero_stage": 3, "config": str(file)}


@pytest.mark.parametrize(("is_tied", "way"), few(itertools.product([False, True], ["positions", "separate"]), 2))
def test_a_rank_with_few_targets_takes_chunks_because_another_must(is_tied: bool, way: str, tmp_path: Path) -> None:
    """At stage 3, where every pass is a collective; here a single rank's pass is too large for one chunk."""
    training = training_of(3, micro_batch_size=1, deepspeed=nothing_stays_gathered(tmp_path))
    case = Case(tiny_model(is_tied), training, last_step=3, way=way, measure_every=2)
    whole = processes(2).run(zero_cases.train, case)[0]
    divided = processes(2).run(zero_cases.train, replace(case, targets_in_chunk=27))[0]
    np.testing.assert_allclose(divided["losses"], whole["losses"], rtol=1e-5)
    np.testing.assert_allclose(divided["norms"], whole["norms"], rtol=1e-5)


@pytest.mark.parametrize(
    "adapters",
    [
        {"target_modules": ["q_proj", "lm_head"], "use_dora": True, "dropout": 0.0},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "dropout": 0.0},
    ],
)
@pytest.mark.parametrize("zero_stage", few([3, 2], 1))
def test_adapters_of_the_head_train_in_chunks_alike(zero_stage: int, adapters: dict[str, Any], tmp_path: Path) -> None:
    training = training_of(zero_stage, strategy={**zero_cases.LORA, **adapters})
    if zero_stage == 3:
        training["deepspeed"] = nothing_stays_gathered(tmp_path)
    case = Case(tiny_model(), training, last_step=4)
    whole = processes(2).run(zero_cases.train, case)[0]
    divided = processes(2).run(zero_cases.train, replace(case, targets_in_chunk=5))[0]
    assert any("lm_head" in name for name in divided["masters"])
    np.testing.assert_allclose(divided["losses"], whole["losses"], rtol=1e-5)
    np.testing.assert_allclose(divided["norms"], whole["norms"], rtol=1e-4)


def test_signals_read_the_same_hidden_states_and_losses_in_chunks() -> None:
    case = Case(tiny_model(), training_of(0))
    nats_N, hidden_BLH = processes(1).run(zero_cases.losses_and_hidden_states, case)[0]
    in_chunks = processes(1).run(zero_cases.losses_and_hidden_states, replace(case, targets_in_chunk=5))[0]
    torch.testing.assert_close(in_chunks[0], nats_N, rtol=1e-6, atol=1e-6)
    assert torch.equal(in_chunks[1], hidden_BLH)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_logits_of_more_than_a_chunk_exist(dtype: str) -> None:
    case = Case(tiny_model(), training_of(1, micro_batch_size=4), dtype=dtype)
    most, *whole = processes(1).run(zero_cases.largest_logits, case)[0]
    fewer, *divided = processes(1).run(zero_cases.largest_logits, replace(case, targets_in_chunk=8))[0]
    assert most > 40
    assert fewer == 8
    np.testing.assert_allclose(divided, whole, rtol=1e-6 if dtype == "float32" else 1e-3)


@pytest.mark.parametrize("zero_stage", few([3, 2, 1, 0], 1))
def test_bfloat16_stays_near_float32_and_keeps_float32_masters(zero_stage: int) -> None:
    case = Case(tiny_model(), training_of(zero_stage), dtype="bfloat16")
    result = processes(2).run(zero_cases.train, case)[0]
    np.testing.assert_allclose(result["losses"], reference()["losses"], rtol=0, atol=0.03)
    assert result["adam_step"] == zero_cases.NUM_STEPS
    masters = [tensors[0] for tensors in result["masters"].values()]
    assert {master.dtype for master in masters} == {torch.float32}
    assert any(not torch.equal(master, master.bfloat16().float()) for master in masters)


def test_dropout_is_a_function_of_the_step() -> None:
    first, again, other = processes(1).run(
        zero_cases.dropout_losses, Case(tiny_model(), training_of(0, strategy=zero_cases.LORA))
    )[0]
    assert first == again
    assert first != other


@pytest.mark.parametrize("stages", few([[0, 3], [0, 1, 2, 3]], 1))
def test_lora_moves_adapters_only_and_alike_in_all_stages(stages: Sequence[int]) -> None:
    results = [
        processes(2).run(
            zero_cases.train, Case(tiny_model(), training_of(stage, strategy={**zero_cases.LORA, "dropout": 0.0}))
        )[0]
        for stage in stages
    ]
    assert all("lora_" in name for name in results[0]["masters"])
    assert np.mean(results[0]["losses"][-1]) < np.mean(results[0]["losses"][0]) - 0.01
    for result in results[1:]:
        np.testing.assert_allclose(result["losses"], results[0]["losses"], rtol=0, atol=1e-4)


def test_users_deepspeed_file_is_honoured(tmp_path: Path) -> None:
    content = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "bf16": {"enabled": "auto"},
        "gradient_clipping": 0.5,
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": [0.9, 0.999], "weight_decay": 0.1}},
        "zero_optimization": {
            "stage": 3,
            "sub_group_size": 5000,
            "stage3_param_persistence_threshold": 0,
            "stage3_max_live_parameters": "auto",
            "offload_optimizer": {"device": "cpu", "pin_memory": False},
            "reduce_bucket_size": "auto",
        },
    }
    file = tmp_path / "zero3.json"
    file.write_text(json.dumps(content))
    case = Case(tiny_model(), {**zero_cases.TRAINING, "deepspeed": str(file)}, last_step=6)
    settings = processes(2).run(zero_cases.engine_settings, case)[0]
    assert settings["zero_stage"] == 3
    zero = settings["config"]["zero_optimization"]
    assert zero["sub_group_size"] == 5000
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert zero["reduce_bucket_size"] == 64 * 64
    result = processes(2).run(zero_cases.train, case)[0]
    np.testing.assert_allclose(result["losses"], reference()["losses"][:6], rtol=0, atol=1e-4)


@functools.cache
def losses_by_place(name: str, step: int) -> dict[tuple[int, int], tuple[float, int]]:
    """Row and place of each example of an evaluation store that has a target -> its nats in plain transformers, and
    its loss tokens."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model(), dtype=torch.float32)
    batch, found = zero_cases.global_batch(step), {}
    for row in range(zero_cases.evaluation_stores()[name].num_rows):
        starts = np.flatnonzero((batch.position_ids_BL[row] == 0) & (batch.input_ids_BL[row] > 0))
        nats = [float(n.detach()) for n in example_nats(model, batch, row)]
        tokens = np.add.reduceat(batch.loss_mask_BL[row], starts, dtype=np.int64)
        found |= {(row, place): (nats[place], int(tokens[place])) for place in range(len(starts)) if tokens[place]}
    return found


@pytest.mark.parametrize("max_rows", ["all", 3])
@pytest.mark.parametrize("way", [None, "lengths", "separate"])
def test_an_evaluation_does_not_depend_on_the_world_size(max_rows: Any, way: str | None) -> None:
    """Every example has the loss that plain transformers gives it alone, whichever rank, row and pass measured it."""
    one, *_ = processes(1).run(zero_cases.measure, Case(tiny_model(), training_of(2), way=way), max_rows)
    two = processes(2).run(zero_cases.measure, Case(tiny_model(), training_of(3), way=way), max_rows)
    assert two[0][2] == two[1][2]
    for name, step in (("long", 11), ("short", 12), ("single", 13)):
        expected = losses_by_place(name, step)
        for losses, samples, _ in (one, *two):
            found, sample = losses[name], samples[name]
            places = list(zip(sample.row_E.tolist(), sample.place_E.tolist(), strict=True))
            assert np.array_equal(found.example_E, one[0][name].example_E)
            assert found.num_held_out == len(expected)
            if max_rows == "all":
                assert sorted(places) == sorted(expected)
            else:
                assert set(places) <= set(expected) and sample.packing.num_rows <= max_rows
                assert len(places) == len(expected) or sample.packing.num_rows == max_rows
            assert found.loss_sum_nats_E == pytest.approx([expected[place][0] for place in places], rel=1e-5)
            assert found.num_tokens_E.tolist() == [expected[place][1] for place in places]
        # All ranks hold the same sums, to the bit.
        assert np.array_equal(two[0][0][name].loss_sum_nats_E, two[1][0][name].loss_sum_nats_E)
