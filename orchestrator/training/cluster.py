"""Ray for the time of a run: started here or joined, quiet, and gone afterwards."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray

from orchestrator.config import ClusterConfig

_QUIET = {
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "PYTHONWARNINGS": "ignore",
}


@contextmanager
def ray_session(cluster: ClusterConfig) -> Iterator[None]:
    """Join the cluster of `address`, or start one on this machine with room for the run's workers.

    SIGTERM becomes a KeyboardInterrupt inside, so that it ends a run as Ctrl-C does.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    settings: dict[str, Any] = {"log_to_driver": True, "logging_level": "ERROR", "configure_logging": True}
    if cluster.address == "local":
        # Explicit, and off: a cluster that lives on loopback for one run needs no token file in the home folder.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.pop("RAY_ADDRESS", None)
        num_cpus = max(os.cpu_count() or 1, cluster.num_workers * cluster.cpus_per_worker)
        settings |= {"address": "local", "num_cpus": num_cpus, "include_dashboard": False}
        settings |= {"_node_ip_address": "127.0.0.1"}
    else:
        settings |= {"address": cluster.address}
    ray.init(**settings)
    # Ray's own SIGTERM handler, set by init, ends the process by abort.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        ray.shutdown()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
