"""Train a run that is ready: with a worker group of the cluster, or in this process.

Progress is recorded in the run's folder, not in Ray's memory: a lost worker group, or a restarted driver, resumes from
the newest complete checkpoint and the journal. So nothing is reported to Ray Train.
"""

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from orchestrator.cluster.nodes import on_this_node
from orchestrator.cluster.session import LOOPBACK, check_resources, explain_loss
from orchestrator.config.cluster import ClusterConfig
from orchestrator.controller.actor import RayWeightsSource, start_controller
from orchestrator.controller.journal import DurableController
from orchestrator.mixing import ResolvedMixing, build_mixing_algorithm
from orchestrator.mixing.base import Domain
from orchestrator.runs.failure import explain, find_full_disk, forget_failure, note_failure, read_failure
from orchestrator.tracking.watch import TrackedRun
from orchestrator.training.hangs import LOOKS, ending_hangs
from workers.durable import teller
from workers.storage.run_copy import DRIVER_LOCK, fetch_from_ranks
from workers.training.plan import TrainingPlan

if TYPE_CHECKING:
    from ray.train import WorkerGroupError
    from ray.train.torch import TorchTrainer

_CONTROLLER_FAILURES = 3  # of Ray Train's own controller; without a limit it would retry a failing start forever
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOK_EVERY_SECONDS = 0.2  # joining a thread without a timeout would block signals


class TrainingFailedError(RuntimeError):
    """The training ended without a result; the message is for the user."""


@dataclass(frozen=True)
class ReadyRun:
    """A run that only has to be trained. Plain data with absolute paths, so any process can do it."""

    plan: TrainingPlan
    mixing: ResolvedMixing
    sizes: list[Domain]
    cluster: ClusterConfig
    num_bad_rows: dict[str, int]
    tracked: TrackedRun

    def without_models(self) -> Self:
        """The same run writing only numbers: neither `model/` nor `best/`, and one checkpoint at a time."""
        plan = self.plan
        leaner = plan.replaced(
            export=False,
            evaluation=plan.evaluation.replaced(best=None),
            training=plan.training.replaced(keep_checkpoints=1),
        )
        return replace(self, plan=leaner)


def train(run: ReadyRun, *, in_this_process: bool = False, stopping: Event | None = None) -> None:
    """Train a run to its end, inside a Ray session.

    `in_this_process` uses this process as the only rank. For short trainings: a worker group takes seconds to start.
    `stopping` ends the training with a checkpoint once set, as does the first Ctrl-C or SIGTERM.

    Raises:
        KeyboardInterrupt: a signal or `stopping` stopped it, after a checkpoint unless a second signal interrupted.
        TrainingFailedError: the workers failed more often than allowed.
        ResourceError: the cluster does not have the resources.
    """
    if in_this_process:
        stopping = stopping or Event()
        run_until_stopped(lambda: train_in_process(run.plan, run.mixing, run.sizes, stopping), stopping.set, stopping)
    else:
        _train_on_cluster(run, stopping)


def _train_on_cluster(run: ReadyRun, stopping: Event | None) -> None:
    """With Ray Train's worker group, one rank per worker, and the controller's actor."""
    # Takes seconds: Ray Train imports torch, pandas and pyarrow, which only a driver that trains needs.
    from ray.exceptions import RayError
    from ray.train import WorkerGroupError

    plan, cluster = run.plan, run.cluster
    check_resources(cluster)
    source = start_controller(plan.folder, plan.run_id, run.mixing, run.sizes, on_this_node(plan.folder))
    forget_failure(plan.folder)
    # Ray Train needs a separate folder; only its controller, on this node, uses it, and not after the training.
    with tempfile.TemporaryDirectory(prefix=".ray-train-", dir=plan.folder, ignore_cleanup_errors=True) as storage:
        trainer = _build_trainer(run, source, storage)
        with ending_hangs(source, plan.folder, cluster.hang_seconds) as hangs:
            try:
                run_until_stopped(trainer.fit, source.stop, stopping, lambda: not source.has_ranks())
            except WorkerGroupError as error:
                failure = "; ".join([_explain(error), *hangs])
                note_failure(plan.folder, failure)
                raise TrainingFailedError(failure) from error
            except RayError as error:  # not of a worker: a lost head node
                raise TrainingFailedError(explain_loss(error)) from error
        if source.is_stopped():
            raise KeyboardInterrupt
    fetch_from_ranks(plan.folder, teller(plan.folder / DRIVER_LOCK))
    if reason := read_failure(plan.folder):
        raise TrainingFailedError(reason)


def _build_trainer(run: ReadyRun, source: RayWeightsSource, storage: str) -> "TorchTrainer":
    from ray.train import FailureConfig, ScalingConfig
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig

    from orchestrator.cluster.elastic import ElasticRun, ElasticTrainer
    from orchestrator.cluster.worker_group import LeanTrainer, LocalTorchConfig

    plan, cluster = run.plan, run.cluster
    sizes = cluster.group_sizes(plan.training)
    is_elastic = len(sizes) > 1
    config_class = LocalTorchConfig if cluster.address == "local" else TorchConfig
    resources = {"CPU": float(cluster.cpus_per_worker), "GPU": cluster.gpus_per_worker}
    settings: dict[str, Any] = {
        "train_loop_config": {
            "plan": plan.model_dump(mode="json"),
            "source": source,
            "report_every_s": cluster.hang_seconds / LOOKS,
            "cores": _cores(cluster),
        },
        "torch_config": config_class(backend="nccl" if cluster.gpus_per_worker else "gloo"),
        "scaling_config": ScalingConfig(
            num_workers=(sizes[0], sizes[-1]) if is_elastic else sizes[0],  # type: ignore[arg-type]  # v2's
            use_gpu=cluster.gpus_per_worker > 0,
            resources_per_worker={kind: amount for kind, amount in resources.items() if amount},
        ),
        "run_config": RayRunConfig(
            name="train",
            storage_path=storage,
            failure_config=FailureConfig(
                max_failures=cluster.max_failures,
                controller_failure_limit=_CONTROLLER_FAILURES,  # type: ignore[call-arg]  # v2's
            ),
        ),
    }
    if is_elastic:
        return ElasticTrainer(_train_rank, run=ElasticRun(plan.folder, plan.num_steps, sizes), **settings)
    return LeanTrainer(_train_rank, **settings)


def _cores(cluster: ClusterConfig) -> int | None:
    """Cores that the ranks of a machine share between them. None where Ray gives each rank its own: on a cluster, whose
    other cores may be somebody else's; and on a GPU, where they would not help."""
    return os.cpu_count() if cluster.address == "local" and not cluster.gpus_per_worker else None


def _train_rank(settings: dict[str, Any]) -> None:
    import ray.train
    import torch

    from workers.engine.checkpoint_writer import NonFiniteStateError
    from workers.export import ExportError
    from workers.model.isolation import PackingError
    from workers.training import loop
    from workers.training.failures import NonFiniteLossError, StreamError
    from workers.training.progress import ProgressMeter, reporting

    plan, source = TrainingPlan.model_validate(settings["plan"]), settings["source"]
    if read_failure(plan.folder):  # noted by the group before this one, which Ray Train replaces whatever it died of
        return
    if settings["cores"] is not None:
        num_ranks = ray.train.get_context().get_local_world_size()
        torch.set_num_threads(max(settings["cores"] // num_ranks, torch.get_num_threads()))
    meter = ProgressMeter(ray.train.get_context().get_world_rank())
    try:
        with reporting(meter, source.report, settings["report_every_s"]):
            loop.train(plan, source, meter)
    except (NonFiniteLossError, NonFiniteStateError, PackingError, ExportError, StreamError) as error:
        # All ranks raise it together, and a retry would raise it again: the run ends instead of recovering.
        if ray.train.get_context().get_world_rank() == 0:
            note_failure(plan.folder, str(error))
    except Exception as error:
        if full := find_full_disk(error):
            reason = explain(OSError(full.errno, full.strerror, str(full.filename or plan.folder)))
            with suppress(OSError):  # if there is no room for it either, the worker group fails max_failures times
                note_failure(plan.folder, f"{reason}; the same command then resumes from the last checkpoint")
        raise
    finally:
        with suppress(Exception):  # a controller that is gone must not hide why the rank ends
            source.forget(meter.read())  # a rank whose group is lost waits to be replaced, and does not hang


def _explain(error: "WorkerGroupError") -> str:
    import ray

    ranks = ", ".join(str(rank) for rank in sorted(error.worker_failures))
    first = error.worker_failures[min(error.worker_failures)]
    cause = first.cause if isinstance(first, ray.exceptions.RayTaskError) else first
    return f"the workers failed (rank {ranks}): {type(cause).__name__}: {cause}"


def train_in_process(
    plan: TrainingPlan, mixing: ResolvedMixing, sizes: list[Domain], stopping: Event | None = None
) -> None:
    """Train a plan with this process as the only rank; the controller is an ordinary object.

    KeyboardInterrupt if `stopping` was set before the end; a checkpoint was written.
    """
    from workers.training import loop

    _join_group_of_one()
    controller = DurableController(plan.folder, plan.run_id, build_mixing_algorithm(mixing, sizes), stopping)
    loop.train(plan, controller)
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
    os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)  # else the interface that the machine's name leads to
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def run_until_stopped(
    work: Callable[[], object],
    ask_to_stop: Callable[[], object],
    stopping: threading.Event | None = None,
    is_idle: Callable[[], bool] = lambda: False,
) -> None:
    """Do work that can be asked to end early: by the first SIGTERM or Ctrl-C; the second interrupts at once, as does
    the first if the work is idle, so that nobody would hear it.

    The work runs in a separate thread, so that the caller's thread can ask. Signals arrive in the main thread only;
    in other threads, setting `stopping` is the only way to ask.

    Raises:
        KeyboardInterrupt: at the second signal, or once idle after the first; the work may still be running.
        BaseException: whatever the work raised.
    """
    stopping = stopping or threading.Event()
    failures: list[BaseException] = []

    def work_here() -> None:
        try:
            work()
        except BaseException as error:  # raised again in the waiting thread
            failures.append(error)

    thread = threading.Thread(target=work_here, name="training", daemon=True)
    with _signals_set(stopping):
        thread.start()
        is_asked = False
        while thread.is_alive():
            thread.join(_LOOK_EVERY_SECONDS)
            if stopping.is_set() and not is_asked:
                is_asked = True
                ask_to_stop()
            if is_asked and is_idle():
                raise KeyboardInterrupt
    if failures:
        raise failures[0]


@contextmanager
def _signals_set(stopping: threading.Event) -> Iterator[None]:
    """The first signal sets the event; does nothing outside the main thread, where no signals arrive."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, _interrupt)
        stopping.set()

    before = {each: signal.signal(each, on_signal) for each in _SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
