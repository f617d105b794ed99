"""A user's DeepSpeed file: what it may say, what raymix fills in, and what is refused with both values."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from workers.config.model import ModelConfig
from workers.config.training import TrainingConfig
from workers.engine import deepspeed_keys
from workers.engine.deepspeed_config import build_deepspeed_config


def build(content: Any = None, folder: Path | None = None, dtype: str = "bfloat16", **training: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"max_steps": 10, "global_batch_size": 16, "micro_batch_size": 2, **training}
    if folder is not None:
        file = folder / "user.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        settings["deepspeed"] = str(file)
    model = ModelConfig(path="base", dtype=dtype)  # type: ignore[arg-type]
    return build_deepspeed_config(TrainingConfig.model_validate(settings), model, world_size=4, hidden_size=64)


def test_without_a_file_deepspeed_divides_nothing_and_accumulates_nothing() -> None:
    config = build(deepspeed={"zero_stage": 2})
    assert config["gradient_accumulation_steps"] == 1
    assert config["managed_gradient_accumulation"] is False
    assert config["train_batch_size"] == 2 * 4
    assert config["zero_optimization"] == {"stage": 2}
    assert config["bf16"] == {"enabled": True}
    assert config["gradient_clipping"] == 1.0
    assert config["zero_force_ds_cpu_optimizer"] is False  # which a compiler would be needed for


def test_a_file_decides_the_stage_and_other_keys_pass_through(tmp_path: Path) -> None:
    zero = {"stage": 3, "offload_param": {"device": "cpu"}, "sub_group_size": 1000, "round_robin_gradients": "auto"}
    harmless = {
        "wall_clock_breakdown": True,
        "flops_profiler": {"enabled": True, "profile_step": 3},
        "comms_logger": {"enabled": True},
        "tensorboard": {"enabled": True, "output_path": "logs"},
        "aio": {"block_size": 1048576},
    }
    config = build({"zero_optimization": zero, "communication_data_type": "fp32", **harmless}, tmp_path)
    assert config["zero_optimization"] == {"stage": 3, "offload_param": {"device": "cpu"}, "sub_group_size": 1000}
    assert config["communication_data_type"] == "fp32"
    assert {key: config[key] for key in harmless} == harmless


def stage_of(content: str, folder: Path) -> int:
    """What the run's configuration says where it names this file: what `check` and the terminal go by."""
    path = folder / "user.json"
    path.write_text(content)
    return TrainingConfig.model_validate({"max_steps": 1, "deepspeed": str(path)}).deepspeed.zero_stage


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_files_own_stage_is_the_runs(stage: int, tmp_path: Path) -> None:
    content = {"zero_optimization": {"stage": stage}}
    assert stage_of(json.dumps(content), tmp_path) == stage
    assert build(content, tmp_path)["zero_optimization"] == {"stage": stage}


@pytest.mark.parametrize("content", ["{", "[1]", "{}", '{"zero_optimization": {"stage": "auto"}}'])
def test_a_file_that_names_no_stage_leaves_the_default(content: str, tmp_path: Path) -> None:
    assert stage_of(content, tmp_path) == 2


def test_a_file_and_a_stage_beside_it_must_agree(tmp_path: Path) -> None:
    path = tmp_path / "user.json"
    path.write_text('{"zero_optimization": {"stage": 3}}')
    with pytest.raises(ValueError, match=r"zero_optimization\.stage is 3, but the run's configuration gives 1"):
        build(deepspeed={"config": path, "zero_stage": 1})


def test_auto_is_filled_in(tmp_path: Path) -> None:
    content = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto", "loss_scale": 0},
        "optimizer": {"type": "AdamW", "params": dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")},
        "scheduler": {"type": "WarmupCosineLR", "params": {"warmup_num_steps": "auto", "total_num_steps": "auto"}},
        "zero_optimization": {
            "stage": "auto",
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
        },
    }
    config = build(content, tmp_path, dtype="float32")
    assert "auto" not in json.dumps(config)
    assert config["bf16"] == {"enabled": False}
    assert config["zero_optimization"] == {
        "stage": 2,
        "reduce_bucket_size": 4096,
        "stage3_prefetch_bucket_size": 3686,
        "stage3_param_persistence_threshold": 640,
    }
    # The engine makes its own; DeepSpeed would build a second one from these.
    assert not {"optimizer", "scheduler", "fp16"} & config.keys()


def test_repeating_the_runs_own_values_is_fine(tmp_path: Path) -> None:
    content = {
        "train_batch_size": 16,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 1.0,
        "fp16": {"enabled": False},
        "optimizer": {"type": "Adam", "params": {"lr": 2e-5, "betas": [0.9, 0.999]}},
        "scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 10}},
    }
    assert build(content, tmp_path)["gradient_accumulation_steps"] == 1


@pytest.mark.parametrize(
    ("content", "key", "theirs", "ours"),
    [
        ({"train_batch_size": 32}, "train_batch_size", "32", "16"),
        ({"train_micro_batch_size_per_gpu": 1}, "train_micro_batch_size_per_gpu", "1", "2"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps", "4", "2"),
        ({"gradient_clipping": 0.5}, "gradient_clipping", "0.5", "1.0"),
        ({"bf16": {"enabled": False}}, "bf16.enabled", "False", "True"),
        ({"fp16": {"enabled": True}}, "fp16.enabled", "True", "bfloat16"),
        ({"optimizer": {"type": "Lion"}}, "optimizer", "Lion", "AdamW"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1.0}}}, "optimizer.params.lr", "1.0", "2e-05"),
        ({"optimizer": {"type": "AdamW", "params": {"betas": [0.9, 0.95]}}}, "optimizer.params.betas", "0.95", "0.999"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler.type", "WarmupLR", "cosine"),
        ({"scheduler": {"params": {"total_num_steps": 9}}}, "scheduler.params.total_num_steps", "9", "10"),
        ({"scheduler": {"params": {"warmup_num_steps": 9}}}, "warmup_num_steps", "9", "warmup_fraction"),
        ({"managed_gradient_accumulation": True}, "managed_gradient_accumulation", "True", "False"),
        ({"prescale_gradients": True}, "prescale_gradients", "True", "False"),
        ({"gradient_predivide_factor": 2.0}, "gradient_predivide_factor", "2.0", "1.0"),
        ({"amp": {"enabled": True}}, "amp.enabled", "True", "apex"),
        ({"optimizer": {"type": "Adam", "params": {"adam_w_mode": False}}}, "optimizer", "False", "AdamW"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage", "4", "2"),
        ({"zero_optimization": {"stage": 1, "overlap_comm": True}}, "overlap_comm", "True", "stage 2 or 3"),
        ({"communication_data_type": "bf16"}, "communication_data_type", "bf16", "gradient_dtype is float32"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "data_types.grad_accum_dtype", "bf16", "float32"),
        ({"data_types": {"param_dtype": "fp16"}}, "data_types.param_dtype", "fp16", "model.dtype is bfloat16"),
        ({"torch_autocast": {"enabled": True, "dtype": "float16"}}, "torch_autocast", "float16", "model.dtype"),
        ({"bf16": {"enabled": True, "check_grad_overflow": False}}, "bf16.check_grad_overflow", "False", "remove it"),
        ({"bf16": {"bf16_optimizer_states": True}}, "bf16.bf16_optimizer_states", "True", "float32 moments"),
        ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op", "sum", "remove it"),
        ({"sparse_gradients": True}, "sparse_gradients", "True", "dense"),
        ({"data_efficiency": {"enabled": True}}, "data_efficiency", "True", "rows"),
        ({"compression_training": {"weight_quantization": {}}}, "compression_training", "weight_quant", "remove it"),
        ({"optimizer": {"params": {"amsgrad": True}}}, "optimizer.params.amsgrad", "True", "AdamW"),
        ({"zero_optimization": {"zero_quantized_gradients": True}}, "zero_quantized_gradients", "True", "rounds"),
        ({"zero_optimization": {"zero_hpz_partition_size": 8}}, "zero_hpz_partition_size", "8", "remove it"),
        ({"zero_optimization": {"offload_optimizer": {"ratio": 0.5}}}, "offload_optimizer.ratio", "0.5", "second"),
        ({"zero_optimization": True}, "zero_optimization", "True", "not a section"),
    ],
)
def test_disagreement_names_file_key_and_both_values(
    content: dict[str, Any], key: str, theirs: str, ours: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as caught:
        build(content, tmp_path)
    for part in (str(tmp_path / "user.json"), key, theirs, ours):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "is not valid JSON"), ("[1]", "not a JSON object"), ('{"aio": {}, "aio": {}}', "'aio' appears twice")],
)
def test_a_broken_file_is_named(content: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        build(content, tmp_path)


def test_an_absent_file_is_named() -> None:
    with pytest.raises(ValueError, match=r"nowhere\.json cannot be read"):
        build(deepspeed="nowhere.json")


def test_a_batch_that_the_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="12 is not a multiple of micro_batch_size 2 x 4 ranks = 8"):
        build(global_batch_size=12)


def test_ranks_that_share_sequences_have_one_part_of_the_batch() -> None:
    assert build(sequence_parallel=2, global_batch_size=12)["train_batch_size"] == 8
    with pytest.raises(ValueError, match="10 is not a multiple of micro_batch_size 2 x 4 ranks / 2 slices = 4"):
        build(sequence_parallel=2, global_batch_size=10)
    with pytest.raises(ValueError, match=r"4 ranks cannot share sequences in training\.sequence_parallel 3 slices"):
        build(sequence_parallel=3)


def test_a_process_in_another_folder_finds_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    training = TrainingConfig.model_validate({"max_steps": 1, "deepspeed": {"config": "ds.json", "zero_stage": 1}})
    assert training.with_absolute_paths().deepspeed.config == tmp_path / "ds.json"
    plain = TrainingConfig(max_steps=1)
    assert plain.with_absolute_paths() == plain


@pytest.mark.parametrize(
    ("content", "wrong", "right"),
    [
        ({"zero_optimisation": {"stage": 3}}, "zero_optimisation", "zero_optimization"),
        ({"gradient_cliping": 1.0}, "gradient_cliping", "gradient_clipping"),
        ({"bfloat16": {"enabled": True}}, "bfloat16", "bf16"),
        (
            {"zero_optimization": {"reduce_buckets_size": 5}},
            "zero_optimization.reduce_buckets_size",
            "reduce_bucket_size",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}},
            "zero_optimization.offload_optimizer.devise",
            "device",
        ),
        ({"zero_optimization": {"offload_param": {"pin_memry": True}}}, "offload_param.pin_memry", "pin_memory"),
        ({"bf16": {"enable": True}}, "bf16.enable", "enabled"),
        ({"flops_profiler": {"enabld": True}}, "flops_profiler.enabld", "enabled"),
        ({"optimizer": {"params": {"weigth_decay": 0.1}}}, "optimizer.params.weigth_decay", "weight_decay"),
    ],
)
def test_a_misspelt_key_is_named_with_the_nearest_one(
    content: dict[str, Any], wrong: str, right: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as caught:
        build(content, tmp_path)
    assert f"{wrong} is not a DeepSpeed key" in str(caught.value)
    assert str(caught.value).endswith(f"write {right!r}")


def test_a_key_like_no_other_is_to_be_taken_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="// is not a DeepSpeed key; remove it"):
        build({"//": "ours"}, tmp_path)


def test_what_is_switched_off_may_stand_in_a_file(tmp_path: Path) -> None:
    off = {
        "torch_autocast": {"enabled": False},
        "elasticity": {"enabled": False},  # whose very name DeepSpeed refuses
        "sparse_gradients": False,
        "amp": {"enabled": "auto"},
        "zero_optimization": {"stage": 2, "zero_quantized_weights": False, "zero_hpz_partition_size": 1},
    }
    config = build(off, tmp_path)
    assert not off.keys() & config.keys() - {"zero_optimization"}
    assert config["zero_optimization"] == {"stage": 2}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bfloat16_sums_in_float32_unless_told_otherwise(stage: int) -> None:
    wide, narrow = (
        build(deepspeed={"zero_stage": stage, "gradient_dtype": dtype}) for dtype in ("float32", "bfloat16")
    )
    assert wide == build(deepspeed={"zero_stage": stage})
    assert (wide["communication_data_type"], narrow["communication_data_type"]) == ("fp32", "bf16")
    if stage:  # at stage 0 DeepSpeed knows no other sums than the weights' own
        assert (wide["data_types"], narrow["data_types"]) == (
            {"grad_accum_dtype": "fp32"},
            {"grad_accum_dtype": "bf16"},
        )


def test_float32_has_no_narrower_sums() -> None:
    assert not {"communication_data_type", "data_types"} & build(dtype="float32").keys()
    with pytest.raises(ValueError, match=r"gradient_dtype is bfloat16, but .* model\.dtype"):
        build(dtype="float32", deepspeed={"gradient_dtype": "bfloat16"})


def test_the_tables_of_keys_are_deepspeeds_own() -> None:
    """In a process of its own, since DeepSpeed takes seconds to import and changes what it finds."""
    program = """
import json
from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
from deepspeed.runtime import config, constants
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.leaf_module_config import DeepSpeedZeroLeafModuleConfig
from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig, DeepSpeedZeroOffloadParamConfig
classes = {
    "zero_optimization": DeepSpeedZeroConfig, "bf16": DeepSpeedBF16Config, "fp16": DeepSpeedFP16Config,
    "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
    "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig,
    "zero_optimization.leaf_module": DeepSpeedZeroLeafModuleConfig, "comms_logger": CommsLoggerConfig,
    "tensorboard": TensorBoardConfig, "csv_monitor": CSVConfig, "wandb": WandbConfig, "comet": CometConfig,
}
keys = {name: sorted({k for n, f in c.model_fields.items() for k in (n, f.alias) if k}) for name, c in classes.items()}
keys["zero_optimization"] += config._REMOVED_ZERO_CONFIG_KEYS
keys[""] = [
    constants.TRAIN_BATCH_SIZE, constants.OPTIMIZER, constants.SCHEDULER, constants.ZERO_ALLOW_UNTESTED_OPTIMIZER,
    constants.ZERO_FORCE_DS_CPU_OPTIMIZER, constants.STEPS_PER_PRINT, constants.TRAIN_MICRO_BATCH_SIZE_PER_GPU,
    constants.GRADIENT_ACCUMULATION_STEPS, constants.MANAGED_GRADIENT_ACCUMULATION, constants.BFLOAT16, constants.FP16,
    constants.TORCH_AUTOCAST, constants.COMMUNICATION_DATA_TYPE, constants.SEQ_PARALLEL_COMMUNICATION_DATA_TYPE,
    constants.PRESCALE_GRADIENTS, constants.GRADIENT_PREDIVIDE_FACTOR, constants.GRADIENT_ALLREDUCE_OP,
    constants.DISABLE_ALLGATHER, constants.DISABLE_PYTHON_GC, constants.CHECKPOINT, constants.DATA_TYPES,
    constants.DATALOADER_DROP_LAST, constants.LOG_LEVEL, constants.GRADIENT_CLIPPING, constants.DUMP_STATE,
    constants.WALL_CLOCK_BREAKDOWN, constants.MEMORY_BREAKDOWN, *config._REMOVED_TOP_LEVEL_CONFIG_KEYS,
]
print(json.dumps(keys))
"""
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    for section, keys in json.loads(told.stdout.splitlines()[-1]).items():
        ours = set(deepspeed_keys._KEYS[section].split())
        assert set(keys) <= ours, section
        assert not section or ours <= set(keys), section
