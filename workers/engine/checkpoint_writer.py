"""Writes checkpoints in parallel and in the background: training waits only if a step would change what is not copied.

`begin` starts a thread, which copies this rank's pieces to host memory, then writes, flushes and hashes them. `settle`
commits: once all ranks have written, rank 0 adds state and manifest and renames the folder, so a checkpoint is complete
or absent. One checkpoint is under way at a time. Both calls are collectives, and an error on one rank is raised on all.
A state that is not finite is never written.

The masters of the best model so far are kept in `best/` beside the checkpoints: links to the files of a checkpoint of
the same step, or files of their own.

On object storage each rank stores its own files, and rank 0 the manifest once all of them are there. A rank on another
node than rank 0 keeps no copy.
"""

import errno
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file

from workers.durable import fsync, name_folder, remove_folder, teller, temporary_folder, temporary_name
from workers.engine.checkpoint import BEST, FORMAT, list_checkpoints
from workers.engine.collectives import max_over_ranks, on_every_rank, on_rank_zero
from workers.engine.host_copy import Copies, HostCopy
from workers.engine.stored_tensors import entries, file_of, key_of
from workers.engine.zero_state import PARTS, TrainedState
from workers.storage.addresses import uri_of
from workers.storage.checkpoints import MANIFEST, STORED_AS, StoredCheckpoint, best_name, drop_best, seal
from workers.storage.mirror import sha256

if TYPE_CHECKING:
    from workers.engine.engine import Engine

_Files = dict[str, dict[str, Any]]
"""File name -> size and sha256, as in a manifest."""


class NonFiniteStateError(RuntimeError):
    """A master or a moment is NaN or infinite: its checkpoint would be useless and replace a good one."""


@dataclass(frozen=True)
class _Checkpoint:
    """One that is under way, as a rank sees it."""

    target: Path
    temporary: Path
    content: dict[str, Any]
    best: dict[str, Any] | None
    """The state of the best model, if its masters are these and `target` is not its own folder."""
    stored_as: str
    """The name of `target` on object storage."""
    pieces: list[tuple[str, int, int]]
    """Name, start and length of each piece that this rank writes."""
    written: "Future[tuple[_Files, dict[str, int]]]"
    """The files of this rank; or none, and how many numbers are not finite, by tensor."""


class CheckpointWriter:
    """Writes checkpoints of an engine to a folder on a file system or object storage that all ranks share; keeps the
    newest `keep`. `publish_logs` stores, on rank 0, the lines that a run needs to resume from a checkpoint."""

    def __init__(
        self, engine: "Engine", folder: Path, keep: int, publish_logs: Callable[[], None] = lambda: None
    ) -> None:
        self._engine = engine
        self._folder = folder
        self._keep = keep
        self._publish_logs = publish_logs
        self._under_way: _Checkpoint | None = None
        self._copy = HostCopy(engine.device)
        engine.before_update = self._copy.wait

    @property
    def is_under_way(self) -> bool:
        """Whether a checkpoint was begun and is not settled yet."""
        return self._under_way is not None

    def begin(self, step: int, state: dict[str, Any] | None, best: dict[str, Any] | None = None) -> None:
        """Copy what the checkpoint of `step` holds, and write it, in the background. An earlier one is settled first.

        Args:
            step: steps done.
            state: any JSON content, for `load`; None: no checkpoint, only the best model.
            best: if the model is the best so far, any JSON content for `read_best`.
        """
        self.settle(wait=True)
        trained, parts = TrainedState(self._engine), PARTS if state is not None else PARTS[:1]
        target = self._folder / (BEST if state is None else f"step-{step:08d}")
        on_rank_zero(lambda: _start(target))
        temporary = temporary_name(target)
        content = {
            "format": FORMAT,
            "step": step,
            "adam_step": trained.adam_step(),
            "zero_stage": self._engine.zero_stage,
            "world_size": self._engine.world_size,
            "tensors": trained.shapes,
            "state": best if state is None else state,
        }
        linked, stored_as = None if state is None else best, target.name if state is not None else best_name(step)
        stored = StoredCheckpoint(self._folder, stored_as, best_name(step) if linked else None, temporary.exists())
        logs = [self._publish_logs] if self._engine.rank == 0 and state is not None else []

        def write(copies: Copies, bad: dict[str, int]) -> tuple[_Files, dict[str, int]]:
            return ({} if bad else _write_files(temporary, self._engine.rank, copies, stored, logs)), bad

        pieces = list(trained.owned())
        written = self._copy.start(list(trained.held()), pieces, parts, write)
        described = [(piece.name, piece.start, piece.length) for piece in pieces]
        self._under_way = _Checkpoint(target, temporary, content, linked, stored_as, described, written)

    def settle(self, wait: bool) -> None:
        """Commit the checkpoint that is under way, if there is one, once all ranks have written their files.

        With `wait` False, only if they have by now; without one under way, nothing is exchanged.

        Raises:
            NonFiniteStateError: on all ranks.
            OSError, RuntimeError: a rank could not write.
            With either the checkpoint is absent, and the older ones are unharmed.
        """
        checkpoint = self._under_way
        if checkpoint is None:
            return
        if not wait and max_over_ranks(not checkpoint.written.done(), self._engine.device):
            return
        self._under_way = None
        files, bad = on_every_rank(checkpoint.written.result)
        self._refuse_non_finite(bad, checkpoint.content["step"])
        of_ranks: list[Any] = [None] * self._engine.world_size
        dist.gather_object((files, checkpoint.pieces), of_ranks if self._engine.rank == 0 else None)
        on_rank_zero(lambda: _commit(checkpoint, of_ranks))
        if self._engine.rank == 0:
            # Only now: a kill before this line costs disk space, and nothing else. Training need not wait for it.
            removal = threading.Thread(target=_remove_older, args=(self._folder, self._keep), daemon=True)
            removal.start()
            if wait:
                removal.join()

    def _refuse_non_finite(self, mine: dict[str, int], step: int) -> None:
        if not max_over_ranks(len(mine), self._engine.device):
            return
        of_ranks: list[dict[str, int]] = [{}] * self._engine.world_size
        dist.all_gather_object(of_ranks, mine)
        # At stage 0 every rank holds all elements. Only one rank's copy may be damaged, but all must stop.
        merge = sum if self._engine.zero_stage else max
        names = dict.fromkeys(name for found in of_ranks for name in found)
        bad = [f"{name} ({merge(found.get(name, 0) for found in of_ranks):,} numbers)" for name in names]
        raise NonFiniteStateError(
            f"the checkpoint of step {step} was not written: {len(bad)} tensors contain NaN or infinite numbers, first "
            f"{', '.join(bad[:3])}; resume from the previous checkpoint with a lower training.learning_rate"
        )


def _start(target: Path) -> None:
    for leftover in target.parent.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary_folder(target)


def _write_files(
    folder: Path, rank: int, copies: Copies, stored: StoredCheckpoint, logs: Sequence[Callable[[], None]]
) -> _Files:
    """Write, flush and hash the files of a rank, and store them if the run is on object storage."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, torch.Tensor]] = {}
    for (part, name), copy in copies.items():
        files.setdefault(file_of(part, rank), {})[key_of(part, name)] = copy
    described = {name: _write(folder / name, tensors) for name, tensors in files.items()}
    for name in files:
        stored.publish(folder / name, teller(folder))
    for publish in logs:
        publish()
    return described


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    try:
        save_file(tensors, path)
        fsync(path)
        return {"size": path.stat().st_size, "sha256": sha256(path)}
    except (OSError, SafetensorError) as error:  # a full disk is reported without a file name
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        number, reason = _system_error(error)
        raise OSError(number, f"{reason}, writing {num_bytes:,} bytes of a checkpoint", str(path)) from error


def _system_error(error: OSError | SafetensorError) -> tuple[int, str]:
    """Its number, and what it means."""
    found = re.search(r"os error (\d+)", str(error))  # all that safetensors has of the number
    number = (isinstance(error, OSError) and error.errno) or (found and int(found[1]))
    return (number, os.strerror(number)) if number else (errno.EIO, str(error))


def _commit(checkpoint: _Checkpoint, of_ranks: list[tuple[_Files, list[tuple[str, int, int]]]]) -> None:
    target, content = checkpoint.target, dict(checkpoint.content)
    content["tensors"] = entries(content["tensors"], [pieces for _, pieces in of_ranks])
    files = {name: described for of_rank, _ in of_ranks for name, described in of_rank.items()}
    if checkpoint.best is not None:
        # First: a run that resumes from the checkpoint does not choose its best model again.
        best = best_name(content["step"])
        _commit_links(checkpoint.temporary, target.parent / BEST, content | {"state": checkpoint.best}, files, best)
    _seal(checkpoint.temporary, target, content, files, checkpoint.stored_as)


def remove_best(folder: Path) -> None:
    """Remove the best model beside the checkpoints, if there is one."""
    drop_best(folder, tell=teller(folder))
    shutil.rmtree(folder / BEST, ignore_errors=True)


def _remove_older(folder: Path, keep: int) -> None:
    for old in list_checkpoints(folder)[:-keep]:
        remove_folder(old, MANIFEST)


def _commit_links(written: Path, target: Path, content: dict[str, Any], files: _Files, stored_as: str) -> None:
    """Commit a folder of links to the masters in another one; copies where the file system has no links."""
    masters = {file_of("master", rank) for rank in range(content["world_size"])}
    temporary = temporary_folder(target)
    for name in masters:
        if uri_of(written) and not (written / name).exists():  # of a rank on another node
            continue
        try:
            os.link(written / name, temporary / name)
        except OSError:
            shutil.copyfile(written / name, temporary / name)
    _seal(temporary, target, content, {name: files[name] for name in masters}, stored_as)


def _seal(temporary: Path, target: Path, content: dict[str, Any], files: _Files, stored_as: str) -> None:
    """Add state and manifest to the files of a folder, and commit it."""
    state_file = temporary / "state.json"
    state_file.write_text(json.dumps(content), encoding="utf-8")
    state = {"state.json": {"size": state_file.stat().st_size, "sha256": sha256(state_file)}}
    (temporary / MANIFEST).write_text(json.dumps({"files": files | state}, indent=1), encoding="utf-8")
    if stored_as != target.name and uri_of(target):
        (temporary / STORED_AS).write_text(stored_as, encoding="utf-8")
    name_folder(temporary, target)
    seal(target, stored_as, teller(target))
