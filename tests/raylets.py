"""Ray clusters on this machine whose nodes are processes of their own, so that a test can take one away."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.runs import ROOT

TOKEN = "0123456789abcdef" * 4
_TRIES = 3


def ray_environment(**changed: str) -> dict[str, str]:
    """What the nodes of a cluster run with, and those that speak to them."""
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "PYTHONPATH": str(ROOT),
        "RAY_DISABLE_USAGE_STATS": "1",
        "RAY_worker_niceness": "0",  # as in a session of raymix's own; else whatever runs beside the tests comes first
    }
    environment.pop("RAY_ADDRESS", None)
    return environment | changed


def start_raylet(log_path: Path, environment: dict[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    """Start a node of one CPU, and wait until it is up. Ray gives it 30 seconds; a busy machine may need more tries."""
    command = [Path(sys.executable).parent / "ray", "start", "--block", "--num-cpus=1", *arguments]
    for _ in range(_TRIES):
        with log_path.open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        while process.poll() is None:
            if "--block" in log_path.read_text():
                return process
            time.sleep(0.05)
    raise AssertionError(log_path.read_text())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
