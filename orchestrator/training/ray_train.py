"""A training plan on the cluster: Ray Train's worker group, one rank per worker, and the controller's actor.

Progress is recorded in the run's folder, not in Ray's memory: a lost worker group, or a restarted driver, resumes from
the newest complete checkpoint and the journal. So nothing is reported to Ray Train.
"""

import tempfile
from threading import Event
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.resources import check_resources
from orchestrator.config.cluster import ClusterConfig
from orchestrator.controller.actor import start_controller
from orchestrator.mixing import ResolvedMixing
from orchestrator.mixing.base import DomainSize
from orchestrator.runs.failure import forget_failure, note_failure, read_failure
from orchestrator.training.stopping import run_until_stopped
from workers.training.plan import TrainingPlan

if TYPE_CHECKING:
    from ray.train import WorkerGroupError

_CONTROLLER_FAILURES = 3  # of Ray Train's own controller; without a limit it would retry a failing start forever


class TrainingFailedError(RuntimeError):
    """The training ended without a result; the message is for the user."""


def train_on_cluster(
    plan: TrainingPlan,
    mixing: ResolvedMixing,
    sizes: list[DomainSize],
    cluster: ClusterConfig,
    stopping: Event | None = None,
) -> None:
    """Train a plan to its end with this cluster's workers.

    Raises:
        KeyboardInterrupt: a signal or `stopping` stopped it, after a checkpoint unless a second signal interrupted.
        TrainingFailedError: the workers failed more often than allowed.
        ResourceError: the cluster does not have the resources.
    """
    # Takes seconds: Ray Train imports torch, pandas and pyarrow, which only a driver that trains needs.
    from ray.train import FailureConfig, ScalingConfig, WorkerGroupError
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    check_resources(cluster)
    source = start_controller(plan.folder, plan.run_id, mixing, sizes)
    forget_failure(plan.folder)
    resources = {"CPU": float(cluster.cpus_per_worker), "GPU": cluster.gpus_per_worker}
    # Ray Train needs a separate folder on storage that all nodes share; its content is not needed afterwards.
    with tempfile.TemporaryDirectory(prefix=".ray-train-", dir=plan.folder, ignore_cleanup_errors=True) as storage:
        trainer = TorchTrainer(
            train_rank,
            train_loop_config={"plan": plan.model_dump(mode="json"), "source": source},
            torch_config=TorchConfig(backend="nccl" if cluster.gpus_per_worker else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=cluster.num_workers,
                use_gpu=cluster.gpus_per_worker > 0,
                resources_per_worker={kind: amount for kind, amount in resources.items() if amount},
            ),
            run_config=RayRunConfig(
                name="train",
                storage_path=storage,
                failure_config=FailureConfig(
                    max_failures=cluster.max_failures,
                    controller_failure_limit=_CONTROLLER_FAILURES,  # type: ignore[call-arg]  # v2's
                ),
            ),
        )
        try:
            run_until_stopped(trainer.fit, source.stop, stopping)
        except WorkerGroupError as error:
            note_failure(plan.folder, _explain(error))
            raise TrainingFailedError(_explain(error)) from error
        if source.is_stopped():
            raise KeyboardInterrupt
    if reason := read_failure(plan.folder):
        raise TrainingFailedError(reason)


def train_rank(settings: dict[str, Any]) -> None:
    import ray.train

    from workers.engine.checkpoint import NonFiniteStateError
    from workers.export import ExportError
    from workers.model.isolation import PackingError
    from workers.training.loop import train
    from workers.training.trainer import NonFiniteLossError

    plan = TrainingPlan.model_validate(settings["plan"])
    try:
        train(plan, settings["source"])
    except (NonFiniteLossError, NonFiniteStateError, PackingError, ExportError) as error:
        # All ranks raise it together, and a retry would raise it again: the run ends instead of recovering.
        if ray.train.get_context().get_world_rank() == 0:
            note_failure(plan.folder, str(error))


def _explain(error: "WorkerGroupError") -> str:
    import ray

    ranks = ", ".join(str(rank) for rank in sorted(error.worker_failures))
    first = error.worker_failures[min(error.worker_failures)]
    cause = first.cause if isinstance(first, ray.exceptions.RayTaskError) else first
    return f"the workers failed (rank {ranks}): {type(cause).__name__}: {cause}"
