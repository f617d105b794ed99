"""Folders that are complete or absent, and errors of rank 0 that all ranks raise together."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist


def on_rank_zero(action: Callable[[], Any]) -> Any:
    """Run `action` on rank 0 and hand its result (anything picklable) to all ranks; a collective.

    An error is raised on every rank: where only rank 0 raised, the others would wait for it for ever.
    """
    error: Exception | None = None
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = action()
        except Exception as caught:  # whatever it is, the other ranks have to hear of it before it is raised
            error = caught
            outcome[1] = f"{type(caught).__name__}: {caught}"
    dist.broadcast_object_list(outcome, src=0)
    if error is not None:
        raise error
    if outcome[1] is not None:
        raise RuntimeError(f"rank 0 failed: {outcome[1]}")
    return outcome[0]


def temporary_folder(folder: Path) -> Path:
    """A fresh folder beside `folder`, for `commit_folder`; what an interrupted attempt left there is removed."""
    temporary = folder.parent / f".{folder.name}.tmp"
    replaced = _replaced(folder)
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)
    for leftover in (temporary, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def commit_folder(temporary: Path, folder: Path) -> None:
    """Give a finished folder its name: everything reaches the disk first, and an older folder of that name goes."""
    for path in [*temporary.rglob("*"), temporary]:
        fsync(path)
    replaced = _replaced(folder)
    if folder.exists():
        folder.rename(replaced)
    temporary.rename(folder)
    fsync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def fsync(path: Path) -> None:
    """Force a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replaced(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.old"
