"""A Ray session for one command: start or join a cluster, silence it, and shut down what was started; and whether a
worker group fits into it, and how many do.
"""

import json
import os
import signal
import socket
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from orchestrator.config.cluster import ClusterConfig

if TYPE_CHECKING:
    from ray.exceptions import RayError

_ANSWERS_WITHIN_SECONDS = 5.0
_TOKEN = Path.home() / ".ray" / "auth_token"
_PREFIX = "prom_metrics_raymix_"  # of the files by which Prometheus finds sessions
_ENVIRONMENT = {
    "PYTHONWARNINGS": "ignore",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    # Ray starts workers at niceness 15, which would give anything else on the machine priority over the training.
    "RAY_worker_niceness": "0",
}
LOOPBACK = "lo"
"""The network interface that no other machine reaches."""
_LOCAL_ENVIRONMENT = {
    # The only option by which Ray listens on 127.0.0.1 alone, as it does by itself on other systems: an address given
    # to ray.init is replaced by one that others reach. Read when Ray is imported.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # What torch opens between ranks.
    "GLOO_SOCKET_IFNAME": LOOPBACK,
    "NCCL_SOCKET_IFNAME": LOOPBACK,
    # An actor that asks whether nodes will be taken away; the only node is this machine, with the driver on it.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


class ClusterError(RuntimeError):
    """Ray failed: a process of the run died, or the cluster could not be reached."""


@contextmanager
def ray_session(cluster: ClusterConfig, include_dashboard: bool = False) -> Iterator[None]:
    """Join the cluster at `address`, or start one on this machine with room for the run's workers.

    Ray frees the resources of a worker group whose driver died only if its dashboard is running. Searches continue
    after that, so they set `include_dashboard`.

    A cluster that it starts here listens on 127.0.0.1 only. Other users of the machine cannot open its folder (in
    raymix-UID of the temporary folder, unless RAY_TMPDIR names another place) or the token (in ~/.ray) by which Ray
    protects it, unless RAY_AUTH_MODE says otherwise.

    SIGTERM becomes a KeyboardInterrupt inside the session, so that it ends a run like Ctrl-C.

    ClusterError in place of Ray's errors.
    """
    is_local = cluster.address == "local"
    for name, value in (_ENVIRONMENT | (_LOCAL_ENVIRONMENT if is_local else {})).items():
        os.environ.setdefault(name, value)
    import ray  # not above: this module is imported by verbs that may find nothing to run

    settings: dict[str, Any] = {"log_to_driver": True, "logging_level": "ERROR", "configure_logging": True}
    if is_local:
        os.environ.pop("RAY_ADDRESS", None)
        _TOKEN.parent.mkdir(mode=0o700, exist_ok=True)
        num_cpus = max(os.cpu_count() or 1, cluster.min_workers * cluster.cpus_per_worker)
        if "RAY_TMPDIR" not in os.environ:
            settings |= {"_temp_dir": str(_folder_of_this_user())}
        settings |= {"address": "local", "num_cpus": num_cpus, "include_dashboard": include_dashboard}
    else:
        settings |= {"address": cluster.address}
        if cluster.runtime_env:  # an empty one would remove a job's working folder
            settings |= {"runtime_env": cluster.runtime_env}
    try:
        ray.init(**settings)
    except ConnectionError as error:
        raise ClusterError(f"cluster.address {cluster.address}: {error}") from error
    except Exception as error:
        if type(error) is not Exception:  # the type that Ray raises if its node does not start in time
            raise
        raise ClusterError(f"Ray did not start: {error}") from error
    if is_local:
        with suppress(FileNotFoundError):  # no token is used
            _TOKEN.chmod(0o600)  # Ray creates it for all to read
    # The SIGTERM handler that ray.init sets would abort the process.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with announced_to_prometheus() if is_local else nullcontext():
            yield
    except ray.exceptions.RayError as error:
        raise ClusterError(f"Ray: {type(error).__name__}: {str(error).strip().splitlines()[0]}") from error
    finally:
        signal.signal(signal.SIGTERM, before)
        ray.shutdown()


def explain_loss(error: "RayError") -> str:
    """What an error of Ray in the middle of a run means, and what to do."""
    import ray

    address = ray.get_runtime_context().gcs_address
    host, _, port = address.rpartition(":")
    resumes = "the same command resumes from the last checkpoint"
    if not answers(host, int(port)):
        return f"the cluster's head node ({address}) does not answer; once the cluster is there again, {resumes}"
    return f"Ray: {type(error).__name__}: {str(error).strip().splitlines()[0]}; {resumes}"


def answers(host: str, port: int) -> bool:
    """Whether a process of a cluster accepts connections."""
    try:
        socket.create_connection((host, port), timeout=_ANSWERS_WITHIN_SECONDS).close()
    except OSError:
        return False
    return True


def _folder_of_this_user() -> Path:
    """A folder for Ray's sessions inside one that only this user can open: Ray opens its own to all."""
    private = Path(tempfile.gettempdir()) / f"raymix-{os.getuid()}"
    private.mkdir(mode=0o700, exist_ok=True)
    status = private.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ClusterError(f"{private} is not this user's folder; remove it, or set TMPDIR to another place")
    private.chmod(0o700)
    return private / "ray"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def announced_to_prometheus() -> Iterator[None]:
    """Publish this session's metrics endpoints in a file while the session lasts.

    Ray writes such a file, prom_metrics_service_discovery.json in its temporary folder, but only if its dashboard is
    running. Sessions that raymix starts have no dashboard, and several may run at once: each writes a separate file
    next to that one, and deploy/prometheus/prometheus.yml reads them all.
    """
    import ray

    folder = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray"
    path = folder / f"{_PREFIX}{os.getpid()}.json"
    targets = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes() if node["Alive"]]
    with suppress(OSError):  # a run must not fail because of metrics
        if not folder.exists():
            folder.mkdir()
            folder.chmod(0o1777)  # other users' sessions are announced there too
        _remove_stale(folder)
        # Prometheus ignores the file until it has its final name.
        unnamed = path.with_suffix(".tmp")
        unnamed.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": targets}]))
        unnamed.replace(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _remove_stale(folder: Path) -> None:
    """Drivers that were killed leave their files behind."""
    for path in folder.glob(f"{_PREFIX}*.json"):
        try:
            os.kill(int(path.stem.removeprefix(_PREFIX)), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (PermissionError, ValueError):  # another user's, still running
            continue


class ResourceError(RuntimeError):
    """The cluster does not have the resources for the worker group."""


def check_resources(cluster: ClusterConfig) -> None:
    """ResourceError if the cluster is too small for the worker group, for which Ray Train would wait forever."""
    import ray  # not above: verbs that may find nothing to run import this module

    there = ray.cluster_resources()
    for kind, each in (("CPU", cluster.cpus_per_worker), ("GPU", cluster.gpus_per_worker)):
        needed = each * cluster.min_workers
        if needed > there.get(kind, 0):
            raise ResourceError(
                f"cluster.num_workers {cluster.min_workers} x {each} {kind} = {needed:g} {kind}, but the cluster has "
                f"{there.get(kind, 0):g}; lower cluster.num_workers or cluster.{kind.lower()}s_per_worker, or add nodes"
            )


def count_fitting(clusters: Iterable[ClusterConfig]) -> int:
    import ray

    return num_side_by_side([node["Resources"] for node in ray.nodes() if node["Alive"]], clusters)


def num_side_by_side(nodes: Iterable[Mapping[str, float]], clusters: Iterable[ClusterConfig]) -> int:
    """How many of these runs fit at the same time, whichever they are, on nodes with these CPUs and GPUs; at least 1.

    With more drivers than room for their workers, worker groups would wait for each other forever.
    """
    nodes, counts = list(nodes), []
    for cluster in clusters:
        each = {"CPU": float(cluster.cpus_per_worker), "GPU": cluster.gpus_per_worker}
        room = [min(node.get(kind, 0.0) / amount for kind, amount in each.items() if amount) for node in nodes]
        counts.append(sum(map(int, room)) // cluster.max_workers)
    return max(1, min(counts))
