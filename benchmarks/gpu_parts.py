"""What `make gpu` measures, one function a part; each needs a process group of one rank and returns rows of the table.

The sizes of the model are given, so that the same code runs on a GPU and, with tiny ones, in the tests on the CPU.
"""

import hashlib
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_model import Sizes, example_lengths, model_flops, packed_batch, plain_losses, write_model
from benchmarks.sizing import MIB, Peak

LOSS_TOLERANCE_NATS = 0.05
"""Between bfloat16 and float32 after some steps: rounding gives a tenth of it, a wrong scale or mask far more."""
RESUMED_TOLERANCE_NATS = 0.01
"""On a GPU the same step twice need not give the same bits."""
ESTIMATE_TOLERANCE = 0.1
UTILISATION_AIM = 0.45
QLORA_ERROR = 0.12
"""Root mean square: sixteen levels and blocks of 64 leave 0.09 of normally distributed weights."""
KERNELS = ("auto", "flash_attention_3", "flash_attention_2", "flex_attention", "sdpa")
_PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
    "RTX 4090": 165.0,
}
"""Dense bfloat16 with sums in float32, by a part of the device's name; from the makers' data sheets."""


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    measured: str
    expected: str = ""
    is_right: bool | None = None
    """None: measured only, or not possible here."""


def build_engine(
    model: Path,
    sizes: Sizes,
    stage: int,
    num_rows: int,
    strategy: Mapping[str, Any] | None = None,
    **of_model: Any,
) -> Any:
    """An engine in bfloat16, with the kernels and packed examples kept apart as a run proves it; and that proof."""
    from workers.config.model import ModelConfig
    from workers.config.training import TrainingConfig
    from workers.engine.engine import Engine

    settings = {"max_steps": 100, "global_batch_size": num_rows, "micro_batch_size": num_rows}
    settings |= {"deepspeed": {"zero_stage": stage}, "strategy": dict(strategy or {"type": "full"})}
    chosen = ModelConfig.model_validate({"path": str(model), "dtype": "bfloat16"} | of_model)
    engine = Engine.build(chosen, TrainingConfig.model_validate(settings))
    return engine, engine.prove_isolation(packed_batch(sizes, 0, num_rows=1))


def train_step(engine: Any, batch: Any) -> float:
    """One step; its loss in nats per token."""
    loss_sum_D, num_tokens_D = engine.forward_backward(batch, 1)
    engine.step(1e-3)
    return float(loss_sum_D.sum() / num_tokens_D.sum())


def losses_of(engine: Any, sizes: Sizes, num_rows: int) -> list[float]:
    """Of the first steps, in nats per token; the engine is gone afterwards."""
    losses = [train_step(engine, packed_batch(sizes, step, num_rows)) for step in range(sizes.steps)]
    engine.destroy()
    return losses


def compared(what: str, found: Sequence[float], expected: Sequence[float], tolerance: float) -> Row:
    """The largest difference of a step's loss."""
    worst = float(np.max(np.abs(np.subtract(found, expected))))
    return Row(what, f"{worst:.4f} nats", f"<= {tolerance} nats", worst <= tolerance)


def measure_losses(sizes: Sizes, folder: Path) -> list[Row]:
    """Losses of a few steps in bfloat16 at each ZeRO stage, against plain torch in float32 on single examples."""
    model, num_rows = write_model(folder / "model", sizes), sizes.rows[0]
    expected = plain_losses(model, sizes, num_rows)
    fallen = expected[0] - expected[-1]
    measured = f"{fallen:.3f} nats in {sizes.steps} steps"
    rows = [Row("loss in float32 and plain torch falls by", measured, "> 0", fallen > 0)]
    for stage in (0, 1, 2, 3):
        engine, _ = build_engine(model, sizes, stage, num_rows)
        found = losses_of(engine, sizes, num_rows)
        rows.append(compared(f"bfloat16 losses at ZeRO {stage} against float32", found, expected, LOSS_TOLERANCE_NATS))
    return rows


def measure_kernels(sizes: Sizes, folder: Path) -> list[Row]:
    """Each kernel that this machine has: the proof that packed examples stay apart with it, and losses of steps."""
    model, num_rows = write_model(folder / "model", sizes), sizes.rows[0]
    expected = plain_losses(model, sizes, num_rows)
    rows = []
    for setting in [*({"attention": name} for name in KERNELS), {"liger": True}]:
        what = ", ".join(f"{key}: {value}" for key, value in setting.items())
        try:
            check_kernels(model, **setting)
            engine, isolation = build_engine(model, sizes, 2, num_rows, **setting)
        except ValueError as error:
            rows.append(Row(f"packed examples with {what}", f"not here: {error}"))
            continue
        measured = f"{isolation.attention}, by {isolation.way}: {isolation.difference_nats:.4f} nats from each alone"
        rows.append(Row(f"packed examples with {what}", measured, "not separate", isolation.way != "separate"))
        found = losses_of(engine, sizes, num_rows)
        rows.append(compared(f"losses with {what} against float32", found, expected, LOSS_TOLERANCE_NATS))
    return rows


def check_kernels(model: Path, **settings: Any) -> None:
    """ValueError if the kernels cannot be used here, as when a run starts."""
    import torch

    from workers.config.model import ModelConfig
    from workers.model.loading import check_model

    check_model(ModelConfig.model_validate({"path": str(model)} | settings), torch.cuda.is_available())


def measure_qlora(sizes: Sizes, folder: Path) -> list[Row]:
    """Weights in 4 bits as they are computed with, and losses of steps on top of them."""
    import torch

    from workers.strategies.lora.quantised import computed_weights, why_not

    what = "weights computed from 4 bits"
    if reason := why_not():
        return [Row(what, f"not here: {reason}")]
    model, num_rows = write_model(folder / "model", sizes), sizes.rows[0]
    base, _ = build_engine(model, sizes, 0, num_rows)
    kept = {name: p.detach().float().cpu() for name, p in base.module.named_parameters()}
    expected = base.forward(packed_batch(sizes, 0, num_rows), 1)[0].item()
    base.destroy()
    strategy = {"type": "lora", "use_qlora": True}
    engine, _ = build_engine(model, sizes, 2, num_rows, strategy)
    errors = [
        float((weight.float() - kept[name]).square().mean().sqrt() / kept[name].std())
        for name, weight in computed_weights(engine.module)
    ]
    number = int(packed_batch(sizes, 0, num_rows).global_loss_tokens)
    before = engine.forward(packed_batch(sizes, 0, num_rows), 1)[0].item()
    losses, far = losses_of(engine, sizes, num_rows), abs(before - expected) / number
    is_finite = bool(torch.isfinite(torch.tensor(losses)).all())
    fallen = losses[0] - losses[-1]
    return [
        Row(what, f"at most {max(errors):.3f} of their spread off", f"<= {QLORA_ERROR}", max(errors) <= QLORA_ERROR),
        Row("loss of the base model in 4 bits", f"{far:.4f} nats from bfloat16's"),
        Row("loss with QLoRA falls by", f"{fallen:.4f} nats in {sizes.steps} steps", "> 0", is_finite and fallen > 0),
    ]


def measure_training(sizes: Sizes, folder: Path, peak_tflops: float | None = None) -> list[Row]:
    """Speed, peak memory against the estimate, the stall of a checkpoint, and a resumed engine."""
    import torch

    model, on_gpu = write_model(folder / "model", sizes), torch.cuda.is_available()
    num_rows, estimated_mib = fitting_rows(sizes, model, on_gpu)
    memory = Peak(on_gpu)
    memory.start()
    engine, _ = build_engine(model, sizes, stage=2, num_rows=num_rows)
    for step in range(2):
        train_step(engine, packed_batch(sizes, step, num_rows))
    batches = [packed_batch(sizes, step, num_rows) for step in range(sizes.steps)]
    memory.read()
    seconds = [_timed(lambda batch=batch: train_step(engine, batch)) for batch in batches]
    measured_mib = memory.read()
    rows = [
        *_speed_rows(sizes, num_rows, statistics.median(seconds), peak_tflops),
        _memory_row(measured_mib, estimated_mib),
        *_checkpoint_rows(engine, sizes, num_rows, folder / "checkpoints", statistics.median(seconds)),
    ]
    engine.destroy()
    return rows


def fitting_rows(sizes: Sizes, model: Path, on_gpu: bool) -> tuple[int, float]:
    """Sequences in a pass that take at most 70 % of the device by the estimate of `raymix check`, and that in MiB."""
    import torch

    from orchestrator.config.run import RunConfig
    from orchestrator.prepare.memory import estimate_memory
    from orchestrator.prepare.model_shape import read_shape

    for num_rows in sizes.rows:
        config = RunConfig.model_validate(
            {
                "name": "gpu",
                "model": {"path": str(model), "dtype": "bfloat16"},
                "domains": {"none": {"train": "none.jsonl"}},
                "data": {"max_length": sizes.length},
                "mixing": {"type": "uniform"},
                "training": {"max_steps": 1, "global_batch_size": num_rows, "micro_batch_size": num_rows},
                "cluster": {"num_workers": 1, "gpus_per_worker": int(on_gpu)},
            }
        )
        estimate = estimate_memory(read_shape(config), config)
        if not on_gpu or estimate.total <= 0.7 * torch.cuda.get_device_properties(0).total_memory:
            return num_rows, estimate.total / MIB
    raise ValueError(f"even {sizes.rows[-1]} sequences of {sizes.length} tokens do not fit into this GPU")


def _speed_rows(sizes: Sizes, num_rows: int, seconds: float, peak_tflops: float | None) -> list[Row]:
    import torch

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    lengths = [length for row in range(num_rows) for length in example_lengths(sizes, row)]
    tflops = model_flops(sizes, lengths) / seconds / 1e12
    peak = peak_tflops or next((peak for part, peak in _PEAK_TFLOPS.items() if part in name), None)
    speed = Row(f"training on {name}, {num_rows} x {sizes.length} tokens", f"{sum(lengths) / seconds:,.0f} tokens/s")
    if peak is None:
        return [speed, Row("model FLOPs utilisation", f"{tflops:.2f} TFLOP/s; the peak of {name} is not known here")]
    used = tflops / peak
    measured, aim = f"{used:.1%} of {peak:,.0f} TFLOP/s", f">= {UTILISATION_AIM:.0%}"
    return [speed, Row("model FLOPs utilisation", measured, aim, used >= UTILISATION_AIM)]


def _memory_row(measured_mib: float, estimated_mib: float) -> Row:
    ratio = estimated_mib / max(measured_mib, 1e-9)
    measured = f"{measured_mib:,.0f} MiB, estimated {estimated_mib:,.0f}: {ratio:.2f}x"
    return Row("peak memory", measured, f"1 +- {ESTIMATE_TOLERANCE}", abs(ratio - 1) <= ESTIMATE_TOLERANCE)


def _checkpoint_rows(engine: Any, sizes: Sizes, num_rows: int, folder: Path, step_seconds: float) -> list[Row]:
    """The second checkpoint is timed: the first also allocates host memory."""
    from workers.engine import checkpoint
    from workers.engine.checkpoint_writer import CheckpointWriter

    writer = CheckpointWriter(engine, folder, keep=1)
    writer.begin(1, {})
    writer.settle(wait=True)
    saved = digest(engine)
    began = time.perf_counter()
    begin = _timed(lambda: writer.begin(2, {}))
    beside = _timed(lambda: train_step(engine, packed_batch(sizes, 0, num_rows)))
    stall = begin + max(beside - step_seconds, 0.0)
    writer.settle(wait=True)
    written = time.perf_counter() - began
    expected = [train_step(engine, packed_batch(sizes, step, num_rows)) for step in (1, 2)]
    path = checkpoint.latest_checkpoint(folder)
    assert path is not None and path.name == "step-00000002"
    again, _ = build_engine(Path(engine.model_config.path), sizes, stage=2, num_rows=num_rows)
    checkpoint.load(again, path)
    loaded = digest(again)
    found = [train_step(again, packed_batch(sizes, step, num_rows)) for step in (0, 1, 2)][1:]
    again.destroy()
    share, is_same = stall / written, loaded == saved
    return [
        Row("a checkpoint holds up training for", f"{stall:.2f} s of {written:.2f} s", "<= 15 %", share <= 0.15),
        Row("masters and moments as loaded", "same bits" if is_same else "differ", "same bits", is_same),
        compared("losses of the resumed engine", found, expected, RESUMED_TOLERANCE_NATS),
    ]


def digest(engine: Any) -> str:
    """Of all that a checkpoint keeps."""
    from workers.engine.zero_state import TrainedState

    found = hashlib.blake2b()
    for piece in TrainedState(engine).held():
        for part in piece.parts:
            array: NDArray[Any] = part.detach().contiguous().cpu().numpy()
            found.update(array.data)
    return found.hexdigest()


def _timed(call: Any) -> float:
    """Seconds, with all of the GPU's work."""
    import torch

    def settle() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    settle()
    began = time.perf_counter()
    call()
    settle()
    return time.perf_counter() - began
