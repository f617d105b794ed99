"""What the tests of checkpoints run on every rank."""

from pathlib import Path
from typing import Any

import torch

from tests.integration.zero_cases import (
    NUM_DOMAINS,
    Case,
    build_engine,
    error_of_training,
    global_batch,
    learning_rate,
    reduced_loss,
)


def train_while_writing(case: Case, folder: Path) -> tuple[list[list[str]], list[list[float]]]:
    """Begin a checkpoint of step 4 that is copied slowly and that only rank 1 cannot finish, train to the last step,
    and let it finish; what is in the folder then and afterwards, and the losses."""
    import time
    from threading import Event
    from unittest.mock import patch

    from safetensors.torch import save_file

    from workers.engine.checkpoint_writer import CheckpointWriter
    from workers.engine.host_copy import HostCopy

    engine = build_engine(case)
    writer, may_write = CheckpointWriter(engine, folder, keep=1), Event()

    def write_when_allowed(*args: Any) -> None:
        if engine.rank == 1:
            assert may_write.wait(60)
        save_file(*args)

    copy_to_host = HostCopy._copy

    def copy_slowly(*args: Any) -> Any:
        time.sleep(1)  # longer than a step takes
        return copy_to_host(*args)

    losses, seen = [], []
    with (
        patch("workers.engine.checkpoint_writer.save_file", write_when_allowed),
        patch.object(HostCopy, "_copy", copy_slowly),
    ):
        for step in range(1, case.last_step + 1):
            batch = global_batch(step, engine.data_rank, engine.num_data_ranks)
            losses.append(reduced_loss(*engine.forward_backward(batch, NUM_DOMAINS)))
            engine.step(learning_rate(step))
            if step == 4:
                writer.begin(step, {})
            writer.settle(wait=False)
        torch.distributed.barrier()
        seen.append(sorted(path.name for path in folder.iterdir()))
        torch.distributed.barrier()
        may_write.set()
        writer.settle(wait=True)
        seen.append(sorted(path.name for path in folder.iterdir()))
    engine.destroy()
    return seen, losses


def keep_the_best(case: Case, folder: Path) -> dict[str, Any]:
    """A checkpoint of step 1, which is the best, then one of step 2; what is kept of the best, and the number of links
    to its masters after each."""
    from workers.engine.checkpoint import read_best
    from workers.engine.checkpoint_writer import CheckpointWriter

    engine, linked = build_engine(case), []
    writer = CheckpointWriter(engine, folder, keep=1)
    for step, best in ((1, {"loss_nats": 1.5}), (2, None)):
        engine.forward_backward(global_batch(step, engine.data_rank, engine.num_data_ranks), NUM_DOMAINS)
        engine.step(learning_rate(step))
        writer.begin(step, {}, best)
        writer.settle(wait=True)
        linked.append((folder / "best" / "masters-00000.safetensors").stat().st_nlink)
    engine.destroy()
    return {**(read_best(folder) or {}), "linked": linked}


def save_on_a_failing_disk(case: Case, fault: str, rank: int) -> str:
    """Train and save where the disk is full for one rank at its files, at state.json or at the rename; each rank's
    error."""
    from contextlib import nullcontext
    from unittest.mock import patch

    full = OSError(28, "No space left on device")
    targets = {
        "file": "workers.engine.checkpoint_writer.save_file",
        "state": "pathlib.Path.write_text",
        "rename": "workers.engine.checkpoint_writer.name_folder",
    }
    with patch(targets[fault], side_effect=full) if torch.distributed.get_rank() == rank else nullcontext():
        return error_of_training(case)
