"""Checkpoints of what is trained, in a raymix format that any world size and ZeRO stage can read.

    step-00000600/
      trainable-00000.safetensors   of each trainable parameter: its fp32 master and both Adam moments, whole
      state.json                    format, step, Adam's step, names and shapes, and the caller's state
      manifest.json                 size and SHA-256 of the other files, written last

Why not DeepSpeed's format: it stores the shards of one world size and one stage. Whole tensors by name can be loaded
into any, and fp32 masters with both moments make the resumed run bit-identical. Random state is not needed: dropout,
data and learning rate are functions of the step.

Rank 0 writes beside the final folder and renames it: a checkpoint is complete or absent. Parameters are gathered one at
a time and written in shards, so that rank 0 holds only one shard. `save` and `load` are collectives, and an error on
rank 0 is raised on all ranks. A state that is not finite is never written.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from workers.durable import commit_folder, temporary_folder
from workers.engine.collectives import on_rank_zero
from workers.engine.zero_state import TrainedState

if TYPE_CHECKING:
    from workers.engine.engine import Engine

FORMAT = 1
SHARD_BYTES = 2**30
_PARTS = ("master", "exp_avg", "exp_avg_sq")
_NAME = re.compile(r"step-(\d{8,})")


class NonFiniteStateError(RuntimeError):
    """A master or a moment is NaN or infinite: its checkpoint would be useless and replace a good one."""


def save(engine: "Engine", folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of `step`, then remove all but the newest `keep`; `state` is any JSON content.

    Raises:
        NonFiniteStateError: on all ranks; no checkpoint was written, and the older ones are unharmed.
    """
    target = folder / f"step-{step:08d}"
    trained = TrainedState(engine)
    temporary = on_rank_zero(lambda: _start(target))
    tensors: dict[str, dict[str, Any]] = {}
    for number, names in enumerate(_plan_shards(trained)):
        file = f"trainable-{number:05d}.safetensors"
        shard = _gather(engine, trained, names, step)
        on_rank_zero(partial(save_file, shard, temporary / file))
        tensors.update({name: {"file": file, "shape": list(trained.shapes[name])} for name in names})
    content = {
        "format": FORMAT,
        "step": step,
        "adam_step": trained.adam_step(),
        "zero_stage": engine.zero_stage,
        "world_size": engine.world_size,
        "tensors": tensors,
        "state": state,
    }
    on_rank_zero(lambda: _commit(temporary, target, content, keep))
    return target


def load(engine: "Engine", path: Path, with_optimizer: bool = True) -> dict[str, Any]:
    """Load a checkpoint into an engine of any stage and world size; returns the `state` given to `save`.

    With `with_optimizer` False, only the masters are loaded, and AdamW is as before its first update.
    """
    trained = TrainedState(engine)
    content = on_rank_zero(lambda: _read_state(path, {name: list(shape) for name, shape in trained.shapes.items()}))
    trained.materialise()
    files: dict[str, list[str]] = {}
    for name, entry in content["tensors"].items():
        files.setdefault(entry["file"], []).append(name)
    for file, names in files.items():
        shard: dict[str, torch.Tensor] = {}  # stays empty except on rank 0
        on_rank_zero(partial(_read_shard, path / file, shard))
        for name in names:
            shape = trained.shapes[name]
            whole = [_broadcast(engine, shape, shard.get(f"{part}/{name}")) for part in _PARTS]
            if not with_optimizer:
                whole[1:] = [torch.zeros_like(moment) for moment in whole[1:]]
            trained.set(name, whole)
    trained.set_adam_step(content["adam_step"] if with_optimizer else 0)
    trained.publish()
    return content["state"]


def latest_checkpoint(folder: Path, warn: Callable[[str], None] = lambda message: None) -> Path | None:
    """The newest complete checkpoint of a run; `warn` is called for each newer one that is incomplete or altered."""
    for path in reversed(_list_checkpoints(folder)):
        fault = find_fault(path)
        if fault is None:
            return path
        warn(f"checkpoint {path} is skipped: {fault}")
    return None


def find_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None; compares every size and hash with the manifest."""
    try:
        files = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            size = (path / name).stat().st_size
            if size != expected["size"]:
                return f"{name} has {size} bytes, its manifest says {expected['size']}"
            if _sha256(path / name) != expected["sha256"]:
                return f"{name} does not have the SHA-256 of its manifest"
    except OSError as error:
        return f"{Path(error.filename or path).name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json is damaged"
    return None if "state.json" in files else "its manifest does not name state.json"


def _start(target: Path) -> Path:
    for leftover in target.parent.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return temporary_folder(target)


def _commit(temporary: Path, target: Path, content: dict[str, Any], keep: int) -> None:
    (temporary / "state.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    files = {path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(temporary.iterdir())}
    (temporary / "manifest.json").write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    commit_folder(temporary, target)
    # Remove older ones only now: a kill before this line costs disk space, and nothing else.
    for old in _list_checkpoints(target.parent)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def _read_state(path: Path, shapes: dict[str, list[int]]) -> dict[str, Any]:
    content = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if content["format"] != FORMAT:
        raise ValueError(f"checkpoint {path} has format {content['format']}, this raymix reads format {FORMAT}")
    saved = {name: entry["shape"] for name, entry in content["tensors"].items()}
    if saved != shapes:
        differing = sorted(name for name in saved.keys() | shapes.keys() if saved.get(name) != shapes.get(name))
        name = differing[0]
        raise ValueError(
            f"checkpoint {path} is for another model or strategy: {len(differing)} parameters differ, first {name}: "
            f"shape {saved.get(name, 'absent')} in the checkpoint, {shapes.get(name, 'absent')} in this run"
        )
    return content


def _read_shard(path: Path, shard: dict[str, torch.Tensor]) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            shard.update({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118  (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _plan_shards(trained: TrainedState) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in trained.shapes.items():
        num_bytes = 4 * len(_PARTS) * shape.numel()
        if names and size + num_bytes > SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += num_bytes
    yield names


def _gather(engine: "Engine", trained: TrainedState, names: list[str], step: int) -> dict[str, torch.Tensor]:
    shard = {}
    num_bad: dict[str, torch.Tensor] = {}
    for name in names:
        for part, tensor in zip(_PARTS, trained.get(name), strict=True):
            num_bad[f"{part} of {name}"] = tensor.numel() - tensor.isfinite().sum()
            if dist.get_rank() == 0:
                # A copy: safetensors refuses tensors that share memory, and the optimizer keeps writing to its own.
                shard[f"{part}/{name}"] = tensor.detach().to("cpu", copy=True).contiguous()
    counts = torch.stack(list(num_bad.values())).to(engine.device)
    dist.all_reduce(counts, dist.ReduceOp.MAX)  # only one rank's copy may be damaged, but all must stop
    bad = [f"{name} ({count:,} numbers)" for name, count in zip(num_bad, counts.tolist(), strict=True) if count]
    if bad:
        raise NonFiniteStateError(
            f"the checkpoint of step {step} was not written: {len(bad)} tensors contain NaN or infinite numbers, first "
            f"{', '.join(bad[:3])}; resume from the previous checkpoint with a lower training.learning_rate"
        )
    return shard


def _broadcast(engine: "Engine", shape: torch.Size, tensor: torch.Tensor | None) -> torch.Tensor:
    full = torch.empty(shape, dtype=torch.float32, device=engine.device) if tensor is None else tensor.to(engine.device)
    dist.broadcast(full, src=0)
    return full


def _list_checkpoints(folder: Path) -> list[Path]:
    paths = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(paths, key=lambda path: int(path.name.removeprefix("step-")))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
