"""The memory estimate: what ZeRO shards, what a strategy trains, and what autograd keeps of a forward pass."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config

from orchestrator.config.run import RunConfig
from orchestrator.prepare.memory import MemoryEstimate, estimate_memory
from orchestrator.prepare.model_shape import read_shape
from tests.kept_tensors import keeping

HIDDEN, NEURONS, LAYERS, LENGTH, ROWS = 32, 128, 8, 64, 2
BUCKET = 500_000_000  # DeepSpeed's, in parameters


def write_config(folder: Path, kind: type[PreTrainedConfig] = LlamaConfig) -> None:
    kind(
        vocab_size=100,
        hidden_size=HIDDEN,
        intermediate_size=NEURONS,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
    ).save_pretrained(folder)


def run_config(
    folder: Path, gpus: int = 0, ranks: Any = 2, dtype: str = "bfloat16", length: int = LENGTH, **training: Any
) -> RunConfig:
    settings = {"max_steps": 1, "deepspeed": {"zero_stage": 2}, "micro_batch_size": ROWS, "global_batch_size": 64}
    return RunConfig.model_validate(
        {
            "name": "estimated",
            "model": {"path": str(folder), "dtype": dtype},
            "domains": {"law": {"train": "law.jsonl"}},
            "data": {"max_length": length},
            "mixing": {"type": "uniform"},
            "training": settings | training,
            "cluster": {"num_workers": ranks, "gpus_per_worker": gpus},
        }
    )


def estimate(folder: Path, **changes: Any) -> MemoryEstimate:
    write_config(folder)
    config = run_config(folder, **changes)
    return estimate_memory(read_shape(config), config)


def zero(stage: int, sums: str = "float32") -> dict[str, Any]:
    return {"deepspeed": {"zero_stage": stage, "gradient_dtype": sums}}


@pytest.mark.parametrize(
    ("stage", "dtype", "weights", "optimizer"),
    [
        (0, "bfloat16", 2, 12),
        (1, "bfloat16", 2, 12 / 4),
        (2, "bfloat16", 2, 12 / 4),
        (3, "bfloat16", 2 / 4 + 2, 12 / 4),  # so small a model stays gathered
        (0, "float32", 4, 8),  # the parameters themselves are stepped
        (2, "float32", 4, 12 / 4),
        (3, "float32", 4 / 4 + 4, 8 / 4),
    ],
)
def test_what_a_stage_shards(tmp_path: Path, stage: int, dtype: str, weights: float, optimizer: float) -> None:
    found = estimate(tmp_path, ranks=4, dtype=dtype, **zero(stage))
    for held in found.moments.values():
        assert held["weights"] == found.num_parameters * weights
        assert held["optimizer"] == found.num_trainable * optimizer


def test_an_elastic_group_is_estimated_at_its_smallest(tmp_path: Path) -> None:
    assert estimate(tmp_path, ranks={"min": 2, "max": 8}) == estimate(tmp_path, ranks=2) != estimate(tmp_path, ranks=8)


@pytest.mark.parametrize(
    ("sums", "stage", "end"),
    [
        ("bfloat16", 0, 2 + 2),
        ("bfloat16", 1, 2 + 2 + 1),
        ("bfloat16", 2, 1 + 1 + 2),
        ("bfloat16", 3, 1 + 2 + 2),
        ("float32", 0, 4 + 4),  # and a copy to be reduced
        ("float32", 1, 4 + 4),
        ("float32", 2, 2 + 2 + 2 + 4),  # the rank's half of the sums, the bucket, its copies in both precisions
        ("float32", 3, 2 + 4 + 4),
    ],
)
def test_gradients_at_the_end_of_a_backward_pass(tmp_path: Path, sums: str, stage: int, end: float) -> None:
    """Two ranks: all gradients, or a rank's half of them, one from earlier passes as well, and the bucket."""
    found = estimate(tmp_path, **zero(stage, sums))
    assert found.moments["backward pass"]["gradients"] == found.num_trainable * end


@pytest.mark.parametrize(("stage", "first", "later"), [(0, 0, 4), (1, 4, 4), (2, 0, 2), (3, 6, 6)])
def test_sums_in_float32_stay_from_pass_to_pass(tmp_path: Path, stage: int, first: float, later: float) -> None:
    """Stages 1 and 3 take them once and for all."""
    one = estimate(tmp_path, global_batch_size=2 * ROWS, **zero(stage))
    several = estimate(tmp_path, **zero(stage))
    assert one.moments["forward pass"]["gradients"] == one.num_trainable * first
    assert several.moments["forward pass"]["gradients"] == one.num_trainable * later


@pytest.mark.parametrize(("stage", "in_step"), [(0, 4 + 8), (1, 4 + 4), (2, 2 + 4), (3, 2 + 4 + 2 + 4)])
def test_the_step_takes_sums_in_float32_as_they_are(tmp_path: Path, stage: int, in_step: float) -> None:
    found = estimate(tmp_path, **zero(stage))
    assert found.moments["optimizer step"]["gradients"] == found.num_trainable * in_step


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_on_a_gpu_the_bucket_is_taken_whole_and_adam_takes_nothing(tmp_path: Path, stage: int) -> None:
    found = estimate(tmp_path, gpus=1, **zero(stage, "bfloat16"))
    on_cpu = estimate(tmp_path, **zero(stage, "bfloat16"))
    in_forward, on_cpu_in_forward = (e.moments["forward pass"]["gradients"] for e in (found, on_cpu))
    kept = found.num_trainable * 2 if stage == 3 else 0  # filled, since the step before
    assert in_forward - on_cpu_in_forward == 2 * BUCKET - kept
    in_step, on_cpu_in_step = (e.moments["optimizer step"]["gradients"] for e in (found, on_cpu))
    if stage < 3:
        assert (in_step, on_cpu_in_step) == (found.num_trainable * (2 + 2 + 4) / 2, found.num_trainable * (4 + 8) / 2)


@pytest.mark.parametrize(("stage", "per_parameter"), [(2, 2), (3, 4)])
def test_on_a_gpu_the_bucket_of_sums_in_float32_is_taken_whole(tmp_path: Path, stage: int, per_parameter: int) -> None:
    found, on_cpu = (estimate(tmp_path, gpus=gpus, **zero(stage)).moments["backward pass"] for gpus in (1, 0))
    num_trainable = estimate(tmp_path).num_trainable
    assert found["gradients"] - on_cpu["gradients"] == (BUCKET - num_trainable) * per_parameter


def test_a_large_model_at_stage_three_is_gathered_in_part(tmp_path: Path) -> None:
    path = tmp_path / "deepspeed.json"
    path.write_text('{"zero_optimization": {"stage3_max_reuse_distance": 2000, "stage3_prefetch_bucket_size": 500}}')
    found = estimate(tmp_path, deepspeed={"zero_stage": 3, "config": str(path)})
    assert found.parts["weights"] == found.num_parameters * 2 / 2 + (2000 / 2 + 500) * 2


def test_at_stage_three_a_rank_updates_a_part_of_its_parameters_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "deepspeed.json"
    path.write_text('{"zero_optimization": {"sub_group_size": 1000}}')
    found = estimate(tmp_path, deepspeed={"zero_stage": 3, "config": str(path)})
    sums = found.num_trainable * 4 / 2 + found.num_trainable * 4  # a rank's share, and the bucket, which holds all
    assert found.moments["optimizer step"]["gradients"] == sums + 1000 / 2 * (4 + 8)  # a copy, and what Adam needs


def test_the_peak_is_the_moment_that_needs_most(tmp_path: Path) -> None:
    few_tokens = estimate(tmp_path, ranks=1, length=8, micro_batch_size=1, **zero(1))
    assert few_tokens.moment == "optimizer step"
    many = estimate(tmp_path, micro_batch_size=32, **zero(2))
    assert many.moment == "forward pass"
    assert many.total == sum(many.parts.values()) == max(sum(held.values()) for held in many.moments.values())
    assert many.parts["logits"] == 32 * LENGTH * 100 * 12


def test_logits_are_of_the_tokens_that_count(tmp_path: Path) -> None:
    write_config(tmp_path)
    config = run_config(tmp_path)
    whole, half = (
        estimate_memory(read_shape(config), config, fraction).moments["forward pass"] for fraction in (1.0, 0.5)
    )
    assert half["logits"] == whole["logits"] / 2
    assert half["activations"] == whole["activations"]


def large_head(folder: Path, length: int, **changes: Any) -> dict[str, float]:
    """Of a vocabulary of 152,000, at the end of the forward pass; a rank has ROWS sequences of this length."""
    config = run_config(folder, length=length, **changes)
    described = LlamaConfig(
        vocab_size=152_000,
        hidden_size=HIDDEN,
        intermediate_size=NEURONS,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    described.save_pretrained(folder)
    return estimate_memory(read_shape(config), config).moments["forward pass"]


@pytest.mark.parametrize(("dtype", "of_gradient"), [("bfloat16", 4 + 2), ("float32", 4)])
def test_logits_are_those_of_a_chunk_where_that_takes_less(tmp_path: Path, dtype: str, of_gradient: int) -> None:
    """768 MiB, and the gradient of the head: a sum of the chunks' in float32, and bfloat16 ones of a chunk."""
    gradient = 152_000 * HIDDEN * of_gradient
    last_whole = (768 * 2**20 + gradient) // (152_000 * 12 * ROWS)
    few = large_head(tmp_path, int(last_whole), dtype=dtype)
    assert few["logits"] == last_whole * ROWS * 152_000 * 12
    assert "gradient of the head" not in few
    many = large_head(tmp_path, int(last_whole) + 1, dtype=dtype)
    assert (many["logits"], many["gradient of the head"]) == (768 * 2**20, gradient)


def test_the_head_that_lora_leaves_frozen_has_no_gradient(tmp_path: Path) -> None:
    frozen = large_head(tmp_path, 4096, strategy={"type": "lora"})
    assert frozen["logits"] == 768 * 2**20
    assert "gradient of the head" not in frozen


def test_cofitune_counts_its_modules_only(tmp_path: Path) -> None:
    full = estimate(tmp_path, strategy={"type": "full"})
    some = estimate(tmp_path, strategy={"type": "cofitune", "layers": [0.25, 0.5], "mask": "none"})
    assert some.num_parameters == full.num_parameters == full.num_trainable
    assert some.num_trainable == 2 * 2 * HIDDEN * NEURONS
    assert some.parts["optimizer"] == some.num_trainable * 12 / 2
    assert some.parts["weights"] == full.parts["weights"]
    masked = estimate(tmp_path, strategy={"type": "cofitune", "layers": [0.25, 0.5]})
    assert masked.parts["optimizer"] == some.num_trainable * (12 + 13) / 2


def test_no_activations_are_kept_below_the_lowest_layer_that_trains(tmp_path: Path) -> None:
    write_config(tmp_path)

    def layers(**strategy: Any) -> int:
        return read_shape(run_config(tmp_path, strategy=strategy)).num_layers_back

    assert layers(type="full") == layers(type="lora") == LAYERS
    assert layers(type="cofitune", layers=[0.75, 1.0]) == LAYERS / 4
    assert layers(type="cofitune", layers=[0, 0.25]) == LAYERS


def test_a_slice_keeps_its_part_of_the_activations_and_a_whole_mask(tmp_path: Path) -> None:
    write_config(tmp_path)
    config = run_config(tmp_path)

    def forward(slices: int, loss_fraction: float, packing: bool = True) -> dict[str, float]:
        changed = config.replaced(
            training=config.training.replaced(sequence_parallel=slices), data=config.data.replaced(packing=packing)
        )
        return estimate_memory(read_shape(changed), changed, loss_fraction).moments["forward pass"]

    whole, sliced = forward(1, 1.0), forward(2, 1.0)
    mask = LAYERS * ROWS * LENGTH * LENGTH * 2
    exchanged = LAYERS * ROWS * (LENGTH / 2) * HIDDEN * 2
    assert forward(2, 1.0, packing=False)["activations"] == (whole["activations"] - mask) / 2 + exchanged
    assert sliced["activations"] == (whole["activations"] - mask) / 2 + exchanged + mask
    assert sliced["logits"] == whole["logits"] / 2
    assert forward(2, 0.3)["logits"] == forward(1, 0.3)["logits"]  # a slice may have all targets
    assert sliced["weights"] == whole["weights"]


@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config])
@pytest.mark.parametrize(
    ("dtype", "attention", "checkpointing"),
    [
        ("bfloat16", "auto", False),
        ("float32", "auto", False),
        ("bfloat16", "auto", True),
        ("bfloat16", "eager", False),
        ("float32", "eager", False),
    ],
)
def test_activations_are_what_autograd_keeps(
    tmp_path: Path, kind: type[PreTrainedConfig], dtype: str, attention: str, checkpointing: bool
) -> None:
    write_config(tmp_path, kind)
    config = run_config(tmp_path, dtype=dtype, activation_checkpointing=checkpointing)
    config = config.model_copy(update={"model": config.model.model_copy(update={"attention": attention})})
    model = AutoModelForCausalLM.from_config(
        kind.from_pretrained(tmp_path), attn_implementation=None if attention == "auto" else attention
    )
    model.to(getattr(torch, dtype)).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    positions = torch.arange(LENGTH).remainder(LENGTH // 2).expand(ROWS, LENGTH)  # two examples a row
    with keeping(model.parameters()) as kept:
        model.model(input_ids=ids, position_ids=positions, use_cache=False)
    in_memory = sum(storage.nbytes() for storage in kept.values())
    expected = estimate_memory(read_shape(config), config).moments["forward pass"]["activations"]
    if checkpointing:  # plus a layer, which is computed again when its turn comes
        whole = run_config(tmp_path, dtype=dtype)
        expected -= estimate_memory(read_shape(whole), whole).moments["forward pass"]["activations"] / LAYERS
    assert in_memory == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize("family", ["mamba", "rwkv", "gemma3n_text", "mixtral"])
def test_families_without_heads_or_with_layers_of_unlike_sizes_have_a_shape(family: str, tmp_path: Path) -> None:
    from benchmarks.tiny_families import build

    build(family).save_pretrained(tmp_path)
    shape = read_shape(run_config(tmp_path))
    assert shape.num_parameters == sum(p.numel() for p in build(family).parameters())
    assert estimate_memory(shape, run_config(tmp_path)).total > 0
    told = [note for note in shape.notes if "router loss is trained, with the coefficient 0.001" in note]
    assert len(told) == (family == "mixtral")


def offloaded(folder: Path, stage: int, *sections: str, gpus: int = 1, sums: str = "float32") -> MemoryEstimate:
    path = folder / "deepspeed.json"
    zero_optimization = {section: {"device": "cpu"} for section in sections} | {"reduce_bucket_size": 1000}
    path.write_text(json.dumps({"zero_optimization": zero_optimization}))
    return estimate(folder, gpus=gpus, deepspeed={"zero_stage": stage, "config": str(path), "gradient_dtype": sums})


@pytest.mark.parametrize("stage", [2, 3])
def test_an_offloaded_optimizer_leaves_buckets_on_the_gpu(tmp_path: Path, stage: int) -> None:
    """Two ranks, bfloat16: masters, moments and a gradient in float32, and the weights that renew the GPU's."""
    found, kept = offloaded(tmp_path, stage, "offload_optimizer"), offloaded(tmp_path, stage)
    assert found.offloaded == found.num_trainable * (4 + 8 + 4 + 2) / 2
    assert kept.offloaded == 0
    for moment, held in found.moments.items():
        assert held["optimizer"] == 0 < kept.moments[moment]["optimizer"]
        assert held["weights"] == kept.moments[moment]["weights"]
        assert held["gradients"] <= 1000 * (4 + 4), moment
    assert found.total < kept.total


def test_offloaded_weights_are_only_those_that_are_gathered(tmp_path: Path) -> None:
    found, kept = offloaded(tmp_path, 3, "offload_param"), offloaded(tmp_path, 3)
    assert found.offloaded == found.num_parameters * 2 / 2
    assert found.parts["weights"] == kept.parts["weights"] - found.offloaded
    assert found.parts["optimizer"] == kept.parts["optimizer"]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_on_the_cpu_offloading_moves_nothing(tmp_path: Path, stage: int) -> None:
    found = offloaded(tmp_path, stage, "offload_optimizer", gpus=0)
    assert (found.offloaded, found.moments) == (0, offloaded(tmp_path, stage, gpus=0).moments)


def test_qlora_stores_matrices_in_four_bits_and_computes_with_one_at_a_time(tmp_path: Path) -> None:
    wide = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    LlamaConfig(vocab_size=100, num_key_value_heads=4, **wide).save_pretrained(tmp_path)
    lora, qlora = (
        run_config(tmp_path, strategy={"type": "lora", "rank": 4, "use_qlora": is_on}) for is_on in (False, True)
    )
    before, found = (estimate_memory(read_shape(config), config) for config in (lora, qlora))
    num_quantised = 3 * (4 * 64 * 64 + 3 * 64 * 128)
    stored = num_quantised * (0.5 + 1 / 64 + 4 / (64 * 256))
    assert before.num_parameters == found.num_parameters
    assert found.parts["weights"] == before.parts["weights"] - num_quantised * 2 + stored + 64 * 128 * 2
    assert found.parts["optimizer"] == before.parts["optimizer"]
    notes = read_shape(qlora).notes
    assert f"stored in 4 bits: 21 matrices with {num_quantised:,} parameters" in notes
