"""Runs and searches as jobs of a real cluster of two raylets that wants a token."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil
import pytest
import yaml

from orchestrator.controller.operator import waiting_requests
from orchestrator.sweeps.tune.trials import SearchRecord
from tests.dashboards import ask
from tests.raylets import TOKEN, free_port, ray_environment, start_raylet
from tests.runs import ROOT, kill_group, num_lines, read_lines, write_run
from tests.unit.conftest import make_fake_run_in

pytestmark = pytest.mark.soak
RUN = {
    "training__max_steps": 300,
    "training__checkpoint_every": 300,
    "evaluation__every": 50,
    "name": "as-a-job",
}


@dataclass
class Cluster:
    address: str
    environment: dict[str, str]

    def raymix(self, *arguments: str | Path, cwd: Path = ROOT, **changed: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "orchestrator.cli.main", *map(str, arguments)],
            cwd=cwd,
            env=self.environment | {"RAY_API_SERVER_ADDRESS": self.address} | changed,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    def start(self, *arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
        """Start the command."""
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli.main", *map(str, arguments)],
            cwd=cwd,
            env=self.environment | {"RAY_API_SERVER_ADDRESS": self.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("r")
    port, dashboard_port = free_port(), free_port()
    decoys = folder / "decoys"  # the nodes' PATH has another Python, without Ray
    decoys.mkdir()
    for name in ("python", "python3"):
        (decoys / name).write_text("#!/bin/sh\necho \"No module named 'pyarrow'\"; exit 1\n")
        (decoys / name).chmod(0o755)
    environment = ray_environment(PATH=f"{decoys}{os.pathsep}{os.environ['PATH']}")
    head = [f"--port={port}", "--head", f"--dashboard-port={dashboard_port}", f"--temp-dir=/tmp/rj{port}"]
    head.append(f"--dashboard-agent-listen-port={free_port()}")  # jobs need it: another Ray here may have the default
    node = [f"--address=127.0.0.1:{port}", "--node-ip-address=127.0.0.2"]
    processes = []
    try:
        for number, arguments in enumerate((head, node)):
            processes.append(start_raylet(folder / f"node{number}.log", environment, *arguments))
        yield Cluster(f"http://127.0.0.1:{dashboard_port}", environment)
    finally:
        for process in processes:
            kill_group(process)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"RAY_AUTH_MODE": "disabled"},
            "a token is required; set RAY_AUTH_MODE=token, and the cluster's token in RAY_AU",
        ),
        (
            {"RAY_AUTH_TOKEN": "f" * 64},
            "the token is wrong; set RAY_AUTH_MODE=token, and the cluster's token in RAY_AU",
        ),
    ],
)
def test_without_the_right_token_nothing_is_taken(cluster: Cluster, changed: dict[str, str], message: str) -> None:
    for verb in (["status"], ["dashboard", "/runs", "--address", cluster.address]):
        done = cluster.raymix(*verb, **changed)
        assert done.returncode == 1 and message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def job_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with relative paths, which travel."""
    folder = tmp_path_factory.mktemp("job")
    config = write_run(folder, **RUN)
    data = yaml.safe_load(config.read_text().replace(f"{folder}/", ""))
    config.write_text(yaml.safe_dump(data | {"output_dir": str(folder / "there")}))
    return folder


@pytest.fixture(scope="module")
def stopped_job(cluster: Cluster, job_folder: Path) -> Path:
    """The folder of a run that was a job, waited for by the command that submitted it, and was stopped by another."""
    run = job_folder / "there" / "as-a-job"
    with cluster.start("submit", "config.yaml", "--wait", cwd=job_folder) as submitted:
        _wait_until(lambda: num_lines(run / "metrics.jsonl") >= 2)
        stopped = cluster.raymix("stop", "as-a-job")
        assert stopped.returncode == 0 and "stopped" in stopped.stdout, stopped.stderr
        said, complaints = submitted.communicate(timeout=60)
    assert submitted.returncode == 1 and "Traceback" not in said + complaints, said + complaints
    assert "stopped; run the same command to resume" in said
    (job,) = re.findall(r"submitted (\S+)", said)
    listed = cluster.raymix("status").stdout
    assert job in listed and "stopped" in listed
    assert "stopped; run the same command to resume" in cluster.raymix("logs", job).stdout
    return run


@pytest.mark.timeout(240)
def test_a_job_that_is_stopped_leaves_a_run_that_can_go_on(stopped_job: Path) -> None:
    num_done = num_lines(stopped_job / "metrics.jsonl")
    assert 2 <= num_done < 300 and not (stopped_job / "summary.json").exists()
    assert [path.name for path in (stopped_job / "checkpoints").iterdir()] == [f"step-{num_done:08d}"]


@pytest.mark.timeout(560)
def test_submitted_again_it_ends_as_the_local_run(cluster: Cluster, stopped_job: Path, job_folder: Path) -> None:
    run = stopped_job
    again = cluster.raymix("submit", "config.yaml", "--wait", cwd=job_folder)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "step 300/300" in again.stdout and "Traceback" not in again.stdout and not again.stderr, again.stderr
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == list(range(1, 301))
    begins = [line["message"] for line in read_lines(run / "events.jsonl") if line["kind"] == "attempt"]
    assert len(begins) == 2 and "resumes after step" in begins[1]

    local = cluster.raymix("run", "config.yaml", "--set", f"output_dir={job_folder / 'here'}", cwd=job_folder)
    assert local.returncode == 0, local.stderr
    theirs = job_folder / "here" / "as-a-job"
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
    assert done.returncode == 2 and "output_dir: runs is relative; give the absolute path" in done.stderr
    done = cluster.raymix("logs", "nobody")
    assert done.returncode == 1 and "no job or run 'nobody' on this cluster" in done.stderr


@pytest.mark.timeout(240)
def test_runs_that_only_the_cluster_sees_are_shown_and_steered(cluster: Cluster, tmp_path: Path) -> None:
    live = make_fake_run_in(tmp_path)("live", total_steps=40, num_steps=20, every=10).path
    command = [sys.executable, "-m", "orchestrator.cli.main", "dashboard", str(tmp_path), "--address", cluster.address]
    command += ["--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, env=cluster.environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = []
        while not said or not said[-1].startswith("http"):
            said.append(next(process.stdout).rstrip())
        base, token = said[-1].split("/#token=")
        port = base.rsplit(":", 1)[1]
        assert said[-3:-1] == [
            f"ssh -N -L {port}:127.0.0.1:{port} HEAD",
            f"or: kubectl port-forward pod/HEAD_POD {port}",
        ]
        assert ask(f"{base}/run/live") == 200
        pause = {"kind": "pause", "by": "ada"}
        for wrong in (None, "guessed", TOKEN):
            assert ask(f"{base}/control/live", pause, wrong) == 401 and waiting_requests(live) == []
        assert ask(f"{base}/control/live", pause, token) == 202 and len(waiting_requests(live)) == 1
        job = said[0].split()[0]
        for path in ("", job, f"{job}/logs"):  # what the cluster shows to those whom it lets in
            request = Request(f"{cluster.address}/api/jobs/{path}", headers={"Authorization": f"Bearer {TOKEN}"})
            shown = urlopen(request).read().decode()
            assert "orchestrator.dashboard.remote" in shown or port in shown
            assert token not in shown
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0 and f"{job}: stopped" in process.stdout.read()
    finally:
        process.kill()
    with pytest.raises(URLError):
        urlopen(base)


@pytest.mark.timeout(400)
def test_a_search_whose_driver_was_killed_goes_on_and_leaves_every_cpu_free(cluster: Cluster, tmp_path: Path) -> None:
    search = {
        "type": "random",
        "num_trials": 2,
        "asha": {"grace_steps": 4, "reduction_factor": 2},
        "space": {"training.learning_rate": {"choice": [1e-5, 0.004]}},  # drawn: the second, the first
    }
    # Long enough that ASHA's word reaches a trial that is under way: it trains on while its evaluation travels.
    config = write_run(tmp_path, name="tuned", training__max_steps=40, search=search)
    folder = tmp_path / "runs" / "tuned-tune"
    submitted = cluster.raymix("submit", config, "--verb", "tune")
    assert submitted.returncode == 0, submitted.stderr
    _wait_until(lambda: any(folder.glob("trial-*/summary.json")))
    (first,) = (path.parent for path in folder.glob("trial-*/summary.json"))
    events = (first / "events.jsonl").read_bytes()
    _driver_in(tmp_path).kill()

    again = cluster.raymix("submit", config, "--verb", "tune", "--wait")
    assert again.returncode == 0 and "1 of 2 trials are done already" in again.stdout, again.stdout + again.stderr
    assert (first / "events.jsonl").read_bytes() == events
    record = SearchRecord.model_validate_json((folder / "search.json").read_bytes())
    states = {trial.changes["training.learning_rate"]: trial.state for trial in record.trials}
    assert states == {0.004: "finished", 1e-5: "ended early"}
    assert not [path for path in folder.iterdir() if path.name.startswith(".ray-tune")]
    assert "errored" not in (folder / "raymix.log").read_text()  # Tune's word for a trial that it will try again
    _wait_until(lambda: _cpus_taken(cluster) == 0, timeout_s=30)

    alone = cluster.raymix("run", folder / "best.yaml", "--set", "cluster.address=local")
    assert alone.returncode == 0, alone.stderr
    best = next(trial for trial in record.trials if trial.name == record.best)
    summary = json.loads((tmp_path / "runs" / "tuned-best" / "summary.json").read_text())
    assert {name: domain["loss_nats_end"] for name, domain in summary["domains"].items()} == best.losses_nats


def _driver_in(folder: Path) -> psutil.Process:
    """The process of a search that was submitted from a folder."""
    wanted = ["orchestrator.cli.main", "tune"]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[2:4] == wanted and process.cwd().startswith(str(folder)):
                return process
    raise AssertionError("the search has no driver")


def _cpus_taken(cluster: Cluster) -> float:
    request = Request(f"{cluster.address}/api/cluster_status", headers={"Authorization": f"Bearer {TOKEN}"})
    status = json.loads(urlopen(request).read())["data"]["clusterStatus"]
    return float(status["loadMetricsReport"]["usage"]["CPU"][0])


def _shares(run: Path) -> list[tuple[int, dict[str, float]]]:
    versions = [json.loads(path.read_text()) for path in sorted((run / "weights").glob("[0-9]*.json"))]
    return [(version["effective_step"], version["shares"]) for version in versions]


def _wait_until(is_time: Callable[[], bool], timeout_s: float = 120) -> None:
    until = time.monotonic() + timeout_s
    while not is_time():
        assert time.monotonic() < until, "the moment never came"
        time.sleep(0.05)
