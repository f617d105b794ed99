"""Ray Train's worker group as raymix needs it."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray._private.worker import get_dashboard_url
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback


class LeanTrainer(TorchTrainer):
    """Ray Train's trainer without two actors that would do nothing, and whose processes take seconds to start."""

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        idle: tuple[type[RayTrainCallback], ...] = (DatasetsCallback,)  # for Ray Data, which no run uses
        if not get_dashboard_url():  # whom the cleaner asks whether Ray Train's controller is alive
            idle += (PlacementGroupCleanerCallback,)
        callbacks: list[RayTrainCallback] = super()._create_default_callbacks()  # type: ignore[misc]  # v2's
        return [each for each in callbacks if not isinstance(each, idle)]


class LocalTorchConfig(TorchConfig):
    """Ray Train's settings for torch where all workers are on this machine: their process group meets over a file.

    Over TCP, as Ray Train has it, the first rank would open a store to which any machine that reaches it may write.
    """

    @property
    def backend_cls(self) -> type["LocalBackend"]:
        return LocalBackend


class LocalBackend(_TorchBackend):
    """Ray Train's backend, started otherwise; each group that replaces a failed one has a file of its own."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    def on_start(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        """Join the workers to a group; raises what a worker raised."""
        assert isinstance(backend_config, TorchConfig)
        self._folder = Path(tempfile.mkdtemp(prefix="raymix-group-"))
        worker_group.execute(_set_torch_distributed_env_vars)
        worker_group.execute(_name_this_machine)
        joining: list[Any] = [
            worker_group.execute_single_async(
                rank,
                _setup_torch_process_group,
                backend=backend_config.backend,
                world_rank=rank,
                world_size=len(worker_group),
                init_method=f"file://{self._folder / 'store'}",
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: BaseWorkerGroup, backend_config: BackendConfig) -> None:
        """Leave the group, and remove its file."""
        try:
            super().on_shutdown(worker_group, backend_config)
        finally:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)


def _name_this_machine() -> None:
    """The variables that DeepSpeed reads, as a launcher would set them; nothing listens there."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
