"""The DeepSpeed configuration: what raymix sets, merged with the user's own JSON file.

raymix owns batch sizes, accumulation, precision, optimizer, schedule and clipping: they come from the run's
configuration. A file may repeat them ("auto" or the same value); a different value is an error, and so is a key that
DeepSpeed does not know or that would change the numbers. Everything else in the file (offload, buckets, profiling, ...)
is passed to DeepSpeed unchanged.
"""

import json
from pathlib import Path
from typing import Any

from workers.config.model import ModelConfig
from workers.config.training import TrainingConfig
from workers.engine.deepspeed_keys import check_keys

_AUTO = "auto"
_NEVER = 10**9
# Sections compared with the run's configuration, which DeepSpeed gets from there or not at all.
_SAID_BY_RAYMIX = ("optimizer", "scheduler", "fp16", "amp", "data_types", "communication_data_type")
_SHORT_NAMES = {"float32": "fp32", "bfloat16": "bf16"}
_SCHEDULERS = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}


def build_deepspeed_config(
    training: TrainingConfig, model: ModelConfig, world_size: int, hidden_size: int
) -> dict[str, Any]:
    """The argument of `deepspeed.initialize`. `hidden_size` determines bucket sizes that a file leaves at "auto"."""
    path = training.deepspeed.config
    user = {} if path is None else check_keys(path, _read(path))
    check = _Agreement(path)
    _check_batch_sizes(user, training, world_size, check)
    _check_precision(user, training, model, check)
    _check_data_types(user, training, model, check)
    _check_optimizer(user, training, check)
    _check_scheduler(user, training, check)
    check.equal(user, "gradient_clipping", training.max_grad_norm)
    check.equal(user, "managed_gradient_accumulation", False)
    check.equal(user, "prescale_gradients", False)
    check.equal(user, "gradient_predivide_factor", 1.0)
    is_bf16, stage = model.dtype == "bfloat16", training.deepspeed.zero_stage
    owned = {
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "train_batch_size": training.micro_batch_size * world_size,
        "gradient_accumulation_steps": 1,
        # The engine sums micro batches with one denominator for the step: DeepSpeed must not divide again.
        "managed_gradient_accumulation": False,
        # Stage 0 in float32: the engine clips, because DeepSpeed would step on a non-finite gradient.
        "gradient_clipping": 0.0 if stage == 0 and not is_bf16 else training.max_grad_norm,
        **_precision(user, training, model),
        "zero_optimization": _zero_optimization(user, stage, hidden_size, check),
    }
    defaults = {
        "steps_per_print": _NEVER,
        # With offload, the inner optimizer remains torch's AdamW, which needs no compiler on the node.
        "zero_force_ds_cpu_optimizer": False,
    }
    kept = {key: value for key, value in _without_auto(user).items() if key not in _SAID_BY_RAYMIX}
    return {**defaults, **kept, **owned}


class _Agreement:
    """Compares a file's values with raymix's; an error names file, key and both values."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def equal(self, section: dict[str, Any], key: str, ours: Any, name: str | None = None) -> None:
        theirs = section.get(key, _AUTO)
        if isinstance(theirs, list):
            theirs = tuple(theirs)  # like the run's pairs
        if theirs not in (_AUTO, ours):
            self.refuse(name or key, theirs, f"the run's configuration gives {ours!r}")

    def refuse(self, key: str, theirs: Any, reason: str) -> None:
        raise ValueError(
            f"training.deepspeed: {self.path}: {key} is {theirs!r}, but {reason}; "
            f'change one of them, or write "auto" in the file'
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
    except OSError as error:
        raise ValueError(f"training.deepspeed: {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"training.deepspeed: {path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"training.deepspeed: {path} contains a {type(content).__name__}, not a JSON object")
    return content


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} appears twice")
    return content


def _section(user: dict[str, Any], key: str) -> dict[str, Any]:
    section = user.get(key, {})
    return _without_auto(section) if isinstance(section, dict) else {}


def _without_auto(section: dict[str, Any]) -> dict[str, Any]:
    """The section without "auto" values, at any depth: DeepSpeed's defaults apply to them."""
    return {
        key: _without_auto(value) if isinstance(value, dict) else value
        for key, value in section.items()
        if value != _AUTO
    }


def _check_batch_sizes(user: dict[str, Any], training: TrainingConfig, world_size: int, check: _Agreement) -> None:
    slices = training.sequence_parallel
    if world_size % slices:
        raise ValueError(f"{world_size} ranks cannot share sequences in training.sequence_parallel {slices} slices")
    rows_per_pass = training.micro_batch_size * world_size // slices
    if training.global_batch_size % rows_per_pass:
        of_slices = f" / {slices} slices" if slices > 1 else ""
        raise ValueError(
            f"training.global_batch_size {training.global_batch_size} is not a multiple of micro_batch_size "
            f"{training.micro_batch_size} x {world_size} ranks{of_slices} = {rows_per_pass}"
        )
    check.equal(user, "train_batch_size", training.global_batch_size)
    check.equal(user, "train_micro_batch_size_per_gpu", training.micro_batch_size)
    check.equal(user, "gradient_accumulation_steps", training.global_batch_size // rows_per_pass)


def _check_precision(user: dict[str, Any], training: TrainingConfig, model: ModelConfig, check: _Agreement) -> None:
    ours = model.dtype == "bfloat16"
    if training.deepspeed.gradient_dtype == "bfloat16" and not ours:
        raise ValueError(
            "training.deepspeed.gradient_dtype is bfloat16, but gradients have at least the precision of model.dtype, "
            "which is float32; remove gradient_dtype, or set model.dtype: bfloat16"
        )
    check.equal(_section(user, "bf16"), "enabled", ours, "bf16.enabled")
    if _section(user, "fp16").get("enabled", False) is not False:
        check.refuse("fp16.enabled", True, f"raymix trains in bfloat16 or float32 (model.dtype is {model.dtype})")
    if _section(user, "amp").get("enabled", False) is not False:
        check.refuse("amp.enabled", True, "raymix does not use apex")


def _check_data_types(user: dict[str, Any], training: TrainingConfig, model: ModelConfig, check: _Agreement) -> None:
    for name, dtype in (
        ("communication_data_type", training.deepspeed.gradient_dtype),
        ("data_types.grad_accum_dtype", training.deepspeed.gradient_dtype),
        ("data_types.param_dtype", model.dtype),
    ):
        section, _, key = name.rpartition(".")
        theirs = (_section(user, section) if section else user).get(key)
        if theirs not in (None, _AUTO, dtype, _SHORT_NAMES[dtype], f"torch.{dtype}"):
            source = "model.dtype" if key == "param_dtype" else "training.deepspeed.gradient_dtype"
            check.refuse(name, theirs, f"{source} is {dtype}")


def _precision(user: dict[str, Any], training: TrainingConfig, model: ModelConfig) -> dict[str, Any]:
    """The sections for the precision of computation, sums and communication."""
    if model.dtype != "bfloat16":
        return {"bf16": {**_section(user, "bf16"), "enabled": False}}
    sums, stage = training.deepspeed.gradient_dtype, training.deepspeed.zero_stage
    section = {**_section(user, "bf16"), "enabled": True}
    if sums == "float32" and stage == 1:
        section.setdefault("immediate_grad_update", True)  # otherwise all gradients are also kept in bfloat16
    precision = {"bf16": section, "communication_data_type": _SHORT_NAMES[sums]}
    # At stage 0 DeepSpeed sums only in the weights' precision; there the engine widens the gradients.
    return precision if stage == 0 else {**precision, "data_types": {"grad_accum_dtype": _SHORT_NAMES[sums]}}


def _check_optimizer(user: dict[str, Any], training: TrainingConfig, check: _Agreement) -> None:
    optimizer = _section(user, "optimizer")
    kind = optimizer.get("type", "AdamW")
    params = optimizer.get("params", {})
    if kind.lower() not in ("adamw", "adam") or params.get("adam_w_mode", True) is False:
        check.refuse("optimizer", {"type": kind, **params}, "raymix trains with AdamW")
    ours = {
        "lr": training.learning_rate,
        "betas": training.betas,
        "eps": training.epsilon,
        "weight_decay": training.weight_decay,
    }
    for key, value in ours.items():
        check.equal(params, key, value, f"optimizer.params.{key}")


def _check_scheduler(user: dict[str, Any], training: TrainingConfig, check: _Agreement) -> None:
    scheduler = _section(user, "scheduler")
    kind = scheduler.get("type", _AUTO)
    if kind != _AUTO and _SCHEDULERS.get(kind) != training.schedule:
        check.refuse("scheduler.type", kind, f"training.schedule is {training.schedule!r}")
    ours = {"warmup_min_lr": 0, "warmup_max_lr": training.learning_rate, "total_num_steps": training.max_steps}
    for key, value in scheduler.get("params", {}).items():
        if key in ours:
            check.equal({key: value}, key, ours[key], f"scheduler.params.{key}")
        elif value != _AUTO:
            check.refuse(f"scheduler.params.{key}", value, "it follows from training.schedule and warmup_fraction")


def _zero_optimization(user: dict[str, Any], stage: int, hidden_size: int, check: _Agreement) -> dict[str, Any]:
    given = user.get("zero_optimization")
    given = given if isinstance(given, dict) else {}
    check.equal(given, "stage", stage, "zero_optimization.stage")
    zero = {"stage": stage, **_without_auto(given)}
    # transformers' formulas, which files with "auto" assume.
    sizes = {
        "reduce_bucket_size": hidden_size * hidden_size,
        "stage3_prefetch_bucket_size": int(0.9 * hidden_size * hidden_size),
        "stage3_param_persistence_threshold": 10 * hidden_size,
    }
    zero.update({key: size for key, size in sizes.items() if given.get(key) == _AUTO})
    if zero["stage"] < 2 and zero.get("overlap_comm"):
        check.refuse("zero_optimization.overlap_comm", True, "it needs stage 2 or 3")
    return zero
