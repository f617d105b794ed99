"""Checkpoints of what is trained, in a raymix format that any world size and ZeRO stage can read.

    step-00000600/
      masters-00000.safetensors     of rank 0: its pieces of the trainable parameters' fp32 masters
      moments-00000.safetensors     the same pieces of both Adam moments; so every rank (`stored_tensors`)
      state.json                    format, step, Adam's step, names, shapes and pieces, and the caller's state
      manifest.json                 size and SHA-256 of the other files, written last

Why not DeepSpeed's format: it stores the shards of one world size and one stage, as pickles. Elements of flattened
parameters by name can be loaded into any, and fp32 masters with both moments make the resumed run bit-identical. Random
state is not needed: dropout, data and learning rate are functions of the step.

This file reads them; `checkpoint_writer` writes them. Format 1, in which rank 0 wrote whole tensors, is read too.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.engine.collectives import on_every_rank, on_rank_zero
from workers.engine.stored_tensors import StoredTensors
from workers.engine.zero_state import PARTS, TrainedState
from workers.storage.addresses import uri_of
from workers.storage.checkpoints import fetch_checkpoint, stored_sizes
from workers.storage.mirror import sha256

if TYPE_CHECKING:
    from workers.engine.engine import Engine

FORMAT = 2
BEST = "best"
"""Folder beside the checkpoints with the masters of the best model so far."""
_READ_FORMATS = (1, FORMAT)
_NAME = re.compile(r"step-(\d{8,})")


def load(engine: "Engine", path: Path, with_optimizer: bool = True) -> dict[str, Any]:
    """Load a checkpoint into an engine of any stage and world size; returns the caller's state in it. A collective, in
    which every rank reads its own part; an error on any rank is raised on all.

    With `with_optimizer` False, only the masters are loaded, and AdamW is as before its first update.
    """
    trained = TrainedState(engine)
    on_every_rank(lambda: fetch_checkpoint(path))
    content = on_rank_zero(lambda: _read_state(path, {name: list(shape) for name, shape in trained.shapes.items()}))
    trained.materialise()
    on_every_rank(lambda: _fill(trained, StoredTensors(path, content["tensors"]), with_optimizer))
    trained.set_adam_step(content["adam_step"] if with_optimizer else 0)
    trained.publish()
    return content["state"]


def latest_checkpoint(folder: Path, warn: Callable[[str], None] = lambda message: None) -> Path | None:
    """The newest complete checkpoint of a run; `warn` is called for each newer one that is incomplete or altered."""
    for path in reversed(list_checkpoints(folder)):
        fault = find_fault(path)
        if fault is None:
            return path
        warn(f"checkpoint {path} is skipped: {fault}")
    return None


def read_best(folder: Path) -> dict[str, Any] | None:
    """The content of `state.json` of the best model beside a run's checkpoints: `tensors` are the entries of its
    masters, `state` is the caller's; None if there is none. ValueError if its files are incomplete or altered."""
    path = folder / BEST
    if not path.exists():
        return None
    if fault := find_fault(path):
        raise ValueError(f"the best model in {path} is damaged: {fault}")
    content: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return content


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first, whether or not they are whole."""
    paths = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(paths, key=lambda path: int(path.name.removeprefix("step-")))


def find_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None; compares every size and hash with the manifest.

    On object storage it compares the sizes alone: hashes are compared when a rank fetches what it needs.
    """
    try:
        files = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["files"]
        stored = {} if uri_of(path) is None else stored_sizes(path)
        for name, expected in files.items():
            if stored.get(name) == expected["size"]:
                continue
            size = (path / name).stat().st_size
            if size != expected["size"]:
                return f"{name} has {size} bytes, its manifest says {expected['size']}"
            if sha256(path / name) != expected["sha256"]:
                return f"{name} does not have the SHA-256 of its manifest"
    except OSError as error:
        return f"{Path(error.filename or path).name} cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "manifest.json is damaged"
    return None if "state.json" in files else "its manifest does not name state.json"


def _read_state(path: Path, shapes: dict[str, list[int]]) -> dict[str, Any]:
    content = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if content["format"] not in _READ_FORMATS:
        readable = " and ".join(map(str, _READ_FORMATS))
        raise ValueError(f"checkpoint {path} has format {content['format']}, this raymix reads formats {readable}")
    saved = {name: entry["shape"] for name, entry in content["tensors"].items()}
    if saved != shapes:
        differing = sorted(name for name in saved.keys() | shapes.keys() if saved.get(name) != shapes.get(name))
        name = differing[0]
        raise ValueError(
            f"checkpoint {path} is for another model or strategy: {len(differing)} parameters differ, first {name}: "
            f"shape {saved.get(name, 'absent')} in the checkpoint, {shapes.get(name, 'absent')} in this run"
        )
    return content


def _fill(trained: TrainedState, stored: StoredTensors, with_optimizer: bool) -> None:
    for piece in trained.held():
        for part, tensor in zip(PARTS, piece.parts, strict=True):
            if part == "master" or with_optimizer:
                tensor.copy_(stored.read(part, piece.name, piece.start, piece.length).view(tensor.shape))
            else:
                tensor.zero_()
