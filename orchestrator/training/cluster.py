"""Ray for the time of a run: started here or joined, quiet, and gone afterwards."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray

from orchestrator.config import ClusterConfig

_QUIET = {"RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0", "PYTHONWARNINGS": "ignore"}


@contextmanager
def ray_session(cluster: ClusterConfig) -> Iterator[None]:
    """Join the cluster of `address`, or start one on this machine with room for the run's workers.

    Ray guards a cluster that it starts here with a token of its own (in ~/.ray), unless RAY_AUTH_MODE says otherwise.
    SIGTERM becomes a KeyboardInterrupt inside, so that it ends a run as Ctrl-C does.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    settings: dict[str, Any] = {"log_to_driver": True, "logging_level": "ERROR", "configure_logging": True}
    if cluster.address == "local":
        os.environ.pop("RAY_ADDRESS", None)
        num_cpus = max(os.cpu_count() or 1, cluster.num_workers * cluster.cpus_per_worker)
        settings |= {"address": "local", "num_cpus": num_cpus, "include_dashboard": False}
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
