"""A training plan in this process, without a worker group; the controller is an ordinary object."""

import os
import tempfile
from pathlib import Path
from threading import Event

from orchestrator.controller.journal import DurableController
from orchestrator.mixing import ResolvedMixing, build_mixing_algorithm
from orchestrator.mixing.base import DomainSize
from workers.training.plan import TrainingPlan


def train_in_process(
    plan: TrainingPlan, mixing: ResolvedMixing, sizes: list[DomainSize], stopping: Event | None = None
) -> None:
    """Train a plan with this process as the only rank.

    KeyboardInterrupt if `stopping` was set before the end; a checkpoint was written.
    """
    from workers.training.loop import train

    _join_group_of_one()
    controller = DurableController(plan.folder, plan.run_id, build_mixing_algorithm(mixing, sizes), stopping)
    train(plan, controller)
    if controller.is_stopped():
        raise KeyboardInterrupt


def _join_group_of_one() -> None:
    """Initialise torch.distributed once; DeepSpeed keeps the group, so all later trainings use it too."""
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    # The variables that DeepSpeed reads, as a launcher would set them.
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    meeting_place = Path(tempfile.mkdtemp(prefix="raymix-group-")) / "store"
    dist.init_process_group(backend, init_method=f"file://{meeting_place}", rank=0, world_size=1)
