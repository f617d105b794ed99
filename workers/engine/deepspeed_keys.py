"""The keys of a user's DeepSpeed file: those that exist, and those that would silently change a run's numbers.

DeepSpeed ignores a misspelt key at the top level, which then silently has no effect. The tables are those of DeepSpeed
0.19; importing it would take seconds.
"""

import difflib
from pathlib import Path
from typing import Any

_OFFLOAD = "device nvme_path buffer_count pin_memory"
_MONITOR = "enabled output_path job_name"

# Section -> its keys; the keys of other sections are not checked.
_KEYS = {
    "": """
        train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps managed_gradient_accumulation
        optimizer scheduler gradient_clipping prescale_gradients gradient_predivide_factor gradient_allreduce_op
        bf16 fp16 amp torch_autocast data_types communication_data_type seq_parallel_communication_data_type
        zero_optimization zero_allow_untested_optimizer zero_force_ds_cpu_optimizer aio activation_checkpointing
        checkpoint datastates_checkpointing compile disable_allgather disable_python_gc
        steps_per_print dump_state log_level timers wall_clock_breakdown memory_breakdown flops_profiler comms_logger
        tensorboard wandb csv_monitor comet vocabulary_size
        autotuning elasticity nebula hybrid_engine pipeline tensor_parallel expert_parallel sequence_parallel_size
        use_data_before_expert_parallelism use_node_local_storage
        data_efficiency curriculum_learning progressive_layer_drop eigenvalue compression_training quantize_training
        weight_quantization sparse_gradients sparse_attention dataloader_drop_last graph_harvesting
    """,
    "zero_optimization": """
        stage contiguous_gradients reduce_scatter reduce_bucket_size use_multi_rank_bucket_allreduce
        allgather_partitions allgather_bucket_size overlap_comm compute_grad_norm load_from_fp32_weights
        elastic_checkpoint offload_param offload_optimizer zenflow sub_group_size cpu_offload cpu_offload_param
        cpu_offload_use_pin_memory stage3_prefetch_bucket_size stage3_param_persistence_threshold
        stage3_model_persistence_threshold stage3_max_live_parameters stage3_max_reuse_distance
        stage3_gather_16bit_weights_on_model_save stage3_gather_fp16_weights_on_model_save
        stage3_module_granularity_threshold stage3_use_all_reduce_for_fetch_params stage3_allgather_sequential
        prefetch_bucket_size param_persistence_threshold model_persistence_threshold max_live_parameters
        max_reuse_distance gather_16bit_weights_on_model_save module_granularity_threshold
        use_all_reduce_for_fetch_params allgather_sequential ignore_unused_parameters legacy_stage1
        round_robin_gradients parameter_alignment zero_hpz_partition_size zero_quantized_weights
        zero_quantized_nontrainable_weights zero_quantized_gradients memory_efficient_linear
        pipeline_loading_checkpoint override_module_apply log_trace_cache_warnings enable_sanity_checks
        save_muon_momentum_buffer_in_memory leaf_module mics_shard_size mics_hierarchical_params_gather
        zeropp_loco_param
    """,
    "zero_optimization.offload_optimizer": f"{_OFFLOAD} pipeline_read pipeline_write fast_init ratio super_offload "
    "cpuadam_cores_perc",
    "zero_optimization.offload_param": f"{_OFFLOAD} buffer_size max_in_cpu",
    "zero_optimization.leaf_module": "classes names name_suffixes",
    "bf16": "enabled immediate_grad_update check_grad_overflow bf16_master_weights_and_grads bf16_optimizer_states",
    "fp16": "enabled auto_cast loss_scale initial_scale_power loss_scale_window hysteresis consecutive_hysteresis "
    "min_loss_scale fp16_master_weights_and_grads",
    "data_types": "grad_accum_dtype param_dtype buffer_dtype keep_in_fp32_modules",
    "optimizer": "type params legacy_fusion",
    "optimizer.params": "lr betas eps weight_decay adam_w_mode torch_adam bias_correction amsgrad foreach fused "
    "fp32_optimizer_states",
    "scheduler": "type params",
    "activation_checkpointing": "partition_activations contiguous_memory_optimization cpu_checkpointing "
    "number_checkpoints synchronize_checkpoint_boundary profile",
    "aio": "block_size queue_depth thread_count intra_op_parallelism single_submit overlap_events use_gds",
    "flops_profiler": "enabled recompute_fwd_factor profile_step module_depth top_modules detailed output_file",
    "comms_logger": "enabled verbose prof_all debug prof_ops",
    "tensorboard": _MONITOR,
    "csv_monitor": _MONITOR,
    "wandb": "enabled group team project",
    "comet": "enabled samples_log_interval project workspace api_key experiment_name experiment_key online mode",
    "timers": "throughput",
    "timers.throughput": "enabled synchronized",
}

_PRECISION = "model.dtype and training.deepspeed.gradient_dtype determine a run's precision"
_ONE_AXIS = "raymix shards over data-parallel ranks only"
_ROWS = "raymix chooses the rows of every batch itself"
_LOSSY = "it rounds what ranks send each other"
_WHOLE = "raymix trains the unmodified model"

# Key -> (harmless value, why others are refused); "auto", null and disabled sections are accepted too.
_REFUSED: dict[str, tuple[Any, str]] = {
    "torch_autocast": (None, f"{_PRECISION}; in float16 it would clip the scaled gradient"),
    "data_types.buffer_dtype": (None, _PRECISION),
    "data_types.keep_in_fp32_modules": ("auto", _PRECISION),
    "bf16.bf16_master_weights_and_grads": (False, "raymix keeps float32 masters"),
    "bf16.bf16_optimizer_states": (False, "raymix keeps float32 moments"),
    "bf16.check_grad_overflow": (True, "a gradient that is not finite must stop the run, not enter the weights"),
    "zero_optimization.compute_grad_norm": (True, "raymix logs the norm and stops if it is not finite"),
    "gradient_allreduce_op": ("mean", "raymix divides by the tokens of the step"),
    "zero_optimization.zero_quantized_weights": (False, _LOSSY),
    "zero_optimization.zero_quantized_nontrainable_weights": (False, _LOSSY),
    "zero_optimization.zero_quantized_gradients": (False, _LOSSY),
    "zero_optimization.zeropp_loco_param": (None, _LOSSY),
    "zero_optimization.zero_hpz_partition_size": (1, "raymix does not save its secondary partitions"),
    "zero_optimization.mics_shard_size": (-1, "raymix does not save its nested partitions"),
    "zero_optimization.mics_hierarchical_params_gather": (False, "raymix does not save its nested partitions"),
    "zero_optimization.legacy_stage1": (False, "DeepSpeed no longer has this stage"),
    "zero_optimization.zenflow": (None, "it delays the updates of most weights"),
    "zero_optimization.offload_optimizer.super_offload": (False, "raymix trains with torch's AdamW"),
    "zero_optimization.offload_optimizer.ratio": (
        1.0,
        "below 1 a second optimizer, which ignores the learning rate, steps the rest",
    ),
    "optimizer.legacy_fusion": (False, "raymix trains with torch's AdamW"),
    "optimizer.params.amsgrad": (False, "raymix trains with plain AdamW"),
    "optimizer.params.bias_correction": (True, "raymix trains with plain AdamW"),
    "data_efficiency": (None, _ROWS),
    "curriculum_learning": (None, _ROWS),
    "dataloader_drop_last": (False, _ROWS),
    "elasticity": (None, "training.global_batch_size sets the batch size, for any number of ranks"),
    "autotuning": (None, "it would change batch sizes; `raymix check` estimates the memory"),
    "progressive_layer_drop": (None, _WHOLE),
    "eigenvalue": (None, _WHOLE),
    "compression_training": (None, _WHOLE),
    "quantize_training": (None, _WHOLE),
    "weight_quantization": (None, _WHOLE),
    "sparse_attention": (None, "model.attention selects the kernel"),
    "nebula": (None, "raymix writes its own checkpoints"),
    "graph_harvesting": (False, "DeepSpeed no longer has it"),
    "sparse_gradients": (False, "raymix reduces dense gradients"),
    "hybrid_engine": (None, _WHOLE),
    "pipeline": (None, _ONE_AXIS),
    "tensor_parallel": (None, _ONE_AXIS),
    "expert_parallel": (None, _ONE_AXIS),
    "sequence_parallel_size": (1, "training.sequence_parallel cuts sequences"),
}


def check_keys(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Refuse keys that DeepSpeed does not have, and keys that would change the numbers of the run.

    Returns:
        The content without disabled keys of the second kind: DeepSpeed fails on the names of some.

    Raises:
        ValueError: with the file, the key, its value, and what to do.
    """
    for section, keys in _KEYS.items():
        known, found = keys.split(), _find(content, section) if section else content
        if not (isinstance(found, dict) or _is_off(found)):
            raise ValueError(f"training.deepspeed: {path}: {section} is {found!r}, not a section with keys")
        for key in found if isinstance(found, dict) else ():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                remedy = f"write {near[0]!r}" if near else "remove it"
                name = f"{section}.{key}" if section else key
                raise ValueError(f"training.deepspeed: {path}: {name} is not a DeepSpeed key; {remedy}")
    for name, (harmless, reason) in _REFUSED.items():
        value = _find(content, name)
        if not _is_off(value) and value != harmless:
            raise ValueError(f"training.deepspeed: {path}: {name} is {value!r}, but {reason}; remove it from the file")
    return _without(content, set(_REFUSED))


def _without(content: dict[str, Any], names: set[str], section: str = "") -> dict[str, Any]:
    return {
        key: _without(value, names, f"{section}{key}.") if isinstance(value, dict) else value
        for key, value in content.items()
        if f"{section}{key}" not in names
    }


def _find(content: dict[str, Any], name: str) -> Any:
    found: Any = content
    for key in name.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _is_off(value: Any) -> bool:
    if isinstance(value, dict) and "enabled" in value:
        return value["enabled"] in (False, "auto")
    return value is None or value == "auto" or value == {}
