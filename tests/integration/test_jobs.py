"""Runs as jobs of a real cluster of two raylets that wants a token."""

import functools
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.runs import ROOT, kill_group, num_lines, read_lines, write_run

TOKEN = "0123456789abcdef" * 4
RUN = {"training__max_steps": 400, "training__checkpoint_every": 300, "name": "as-a-job"}


@dataclass
class Cluster:
    address: str
    environment: dict[str, str]

    def raymix(self, *arguments: str | Path, cwd: Path = ROOT, **changed: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *map(str, arguments)],
            cwd=cwd,
            env=self.environment | {"RAY_API_SERVER_ADDRESS": self.address} | changed,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("r")
    port, dashboard_port = _free_port(), _free_port()
    binaries = Path(sys.executable).parent
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_DISABLE_USAGE_STATS": "1",
    }
    environment.pop("RAY_ADDRESS", None)
    head = [f"--port={port}", "--head", f"--dashboard-port={dashboard_port}", f"--temp-dir=/tmp/rj{port}"]
    node = [f"--address=127.0.0.1:{port}", "--node-ip-address=127.0.0.2"]
    processes = []
    try:
        for number, arguments in enumerate((head, node)):
            log_path = folder / f"node{number}.log"
            with log_path.open("wb") as log:
                command = [binaries / "ray", "start", "--block", "--num-cpus=1", *arguments]
                processes.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
                )
            _wait_until(functools.partial(_says, log_path, "--block"))
        yield Cluster(f"http://127.0.0.1:{dashboard_port}", environment)
    finally:
        for process in processes:
            kill_group(process)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "a token is wanted; set RAY_AUTH_MODE=token and the cluster's token in RAY_AU"),
        ({"RAY_AUTH_TOKEN": "f" * 64}, "the token is wrong; set RAY_AUTH_MODE=token and the cluster's token in RAY_AU"),
    ],
)
def test_without_the_right_token_nothing_is_taken(cluster: Cluster, changed: dict[str, str], message: str) -> None:
    done = cluster.raymix("status", **changed)
    assert done.returncode == 1 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(560)
def test_a_job_that_was_stopped_and_submitted_again_is_the_local_run(cluster: Cluster, tmp_path: Path) -> None:
    config = write_run(tmp_path, **RUN)
    data = yaml.safe_load(config.read_text().replace(f"{tmp_path}/", ""))  # relative paths, which travel
    config.write_text(yaml.safe_dump(data | {"output_dir": str(tmp_path / "there")}))
    run = tmp_path / "there" / "as-a-job"

    submitted = cluster.raymix("submit", "config.yaml", cwd=tmp_path)
    assert submitted.returncode == 0, submitted.stderr
    job = re.search(r"submitted (\S+)", submitted.stdout)[1]  # type: ignore[index]
    _wait_until(lambda: num_lines(run / "metrics.jsonl") >= 2)
    stopped = cluster.raymix("stop", "as-a-job")
    assert stopped.returncode == 0 and "stopped" in stopped.stdout, stopped.stderr
    num_done = num_lines(run / "metrics.jsonl")
    assert 2 <= num_done < 400 and not (run / "summary.json").exists()
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{num_done:08d}"]
    listed = cluster.raymix("status").stdout
    assert job in listed and "stopped" in listed
    assert "stopped; the same command goes on" in cluster.raymix("logs", job).stdout

    again = cluster.raymix("submit", "config.yaml", "--wait", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "step 400/400" in again.stdout and "Traceback" not in again.stdout and not again.stderr, again.stderr

    local = cluster.raymix("run", "config.yaml", "--set", f"output_dir={tmp_path / 'here'}", cwd=tmp_path)
    assert local.returncode == 0, local.stderr
    theirs = tmp_path / "here" / "as-a-job"
    assert (run / "samples.jsonl").read_bytes() == (theirs / "samples.jsonl").read_bytes()
    assert _shares(run) == _shares(theirs)
    losses = [[line["loss_nats"] for line in read_lines(folder / "metrics.jsonl")] for folder in (run, theirs)]
    assert losses[0] == losses[1]
    model = "model/model.safetensors"
    assert (run / model).read_bytes() == (theirs / model).read_bytes()


@pytest.mark.timeout(60)
def test_a_job_that_cannot_be_is_refused_in_a_line(cluster: Cluster, tmp_path: Path) -> None:
    config = write_run(tmp_path)
    done = cluster.raymix("submit", config, "--set", "output_dir=runs")
    assert done.returncode == 2 and "output_dir: runs is relative; a job needs the absolute path" in done.stderr
    done = cluster.raymix("logs", "nobody")
    assert done.returncode == 1 and "no job or run 'nobody' on this cluster" in done.stderr


def _shares(run: Path) -> list[tuple[int, dict[str, float]]]:
    versions = [json.loads(path.read_text()) for path in sorted((run / "weights").glob("[0-9]*.json"))]
    return [(version["effective_step"], version["shares"]) for version in versions]


def _says(path: Path, words: str) -> bool:
    return words in path.read_text()


def _wait_until(is_time: Callable[[], bool], timeout_s: float = 120) -> None:
    until = time.monotonic() + timeout_s
    while not is_time():
        assert time.monotonic() < until, "the moment never came"
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
