"""Runs on object storage: by its URI for who reads it, and on two nodes that share no folder."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.test_kill import assert_equal_runs
from tests.objects import BUCKET, ObjectServer, serving
from tests.raylets import free_port, ray_environment, start_raylet
from tests.runs import DOMAINS, ROOT, kill_group, ray_processes, raymix, read_lines, start, wait_for, write_run
from workers.storage import client

STEPS = 120


class Nodes:
    """A head and a second node, whose caches are separate."""

    def __init__(self, folder: Path, storage: dict[str, str]) -> None:
        self._folder, self._port = folder, free_port()
        self.caches = {name: folder / name for name in ("head", "second")}
        self._environments = {
            name: ray_environment(**storage, RAYMIX_CACHE=str(cache)) for name, cache in self.caches.items()
        }
        temporary = f"--temp-dir=/tmp/re{self._port}"  # short: it is part of the paths of sockets
        self._processes = [
            self._start("head", "--head", f"--port={self._port}", "--include-dashboard=false", temporary),
            self._start("second", f"--address=127.0.0.1:{self._port}", "--node-ip-address=127.0.0.2"),
        ]

    def run(self, config: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "orchestrator.cli.main", "run", str(config)]
        command += ["--set", f"cluster.address=127.0.0.1:{self._port}"]
        with (self._folder / "run.log").open("ab") as log:
            driver = subprocess.Popen(
                command, cwd=ROOT, env=self._environments["head"], stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(driver)
        return driver

    def said(self) -> str:
        return (self._folder / "run.log").read_text()

    def close(self) -> None:
        for process in reversed(self._processes):
            if process.poll() is None:
                kill_group(process)
        shutil.rmtree(f"/tmp/re{self._port}", ignore_errors=True)

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        return start_raylet(self._folder / f"{name}.log", self._environments[name], *arguments)


def download(uri: str, folder: Path) -> Path:
    """A run's folder with all that is stored of it."""
    for name in client.list_objects(uri):
        assert client.get(f"{uri}/{name}", folder / name)
    return folder


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    with serving(tmp_path / "server", tmp_path / "reader", monkeypatch) as server:
        yield server


def test_a_run_whose_rank_is_killed_is_the_undisturbed_local_run_and_is_read_by_its_uri(
    server: ObjectServer, finished: Path, tmp_path: Path
) -> None:
    uri = f"s3://{BUCKET}/runs/small"
    references = json.loads((finished / "reference.json").read_text())["loss_nats"]
    config = write_run(tmp_path, output_dir=f"s3://{BUCKET}/runs", mixing__reference=references)
    process = start("run", config, stdout=tmp_path / "stdout.txt")
    wait_for(process, lambda: client.look(f"{uri}/checkpoints/step-00000010/manifest.json") is not None)
    os.kill(min(ray_processes(process.pid, "RayTrainWorker")), signal.SIGKILL)  # the worker group is replaced
    assert process.wait(timeout=240) == 0
    said = (tmp_path / "stdout.txt").read_text()
    assert f"{uri}/model" in said
    assert "checkpoints/step-00000030/manifest.json" in client.list_objects(uri)
    assert str(tmp_path / "reader").encode() not in (client.get_bytes(f"{uri}/config.json") or b"")
    stored = download(uri, tmp_path / "stored")
    attempts = [event["step"] for event in read_lines(stored / "events.jsonl") if event["kind"] == "attempt"]
    assert len(attempts) == 2 and attempts[1] >= 10
    assert_equal_runs(stored, finished)

    shutil.rmtree(tmp_path / "reader")  # the cache of the node that trained it
    again = raymix("run", config)
    assert again.returncode == 0 and "starting Ray" not in again.stdout, again.stderr
    assert again.stdout.split("Improved")[-1] == said.split("Improved")[-1]
    told = raymix("weights", uri, "history")
    assert told.returncode == 0 and "versatune" in told.stdout, told.stderr
    finished = raymix("weights", uri, "set", "law=0.5")
    assert finished.returncode == 1 and "is finished" in finished.stderr
    report = raymix("report", uri, "--output", tmp_path / "report.html")
    assert report.returncode == 0 and (tmp_path / "report.html").exists(), report.stderr
    probed = raymix("probe", uri, "--num-examples", "4", "--output", tmp_path / "probe.html")
    assert probed.returncode == 0 and (tmp_path / "probe.html").exists(), probed.stderr
    board = start("dashboard", f"s3://{BUCKET}/runs", "--port", "0", stdout=tmp_path / "board.txt")
    try:
        wait_for(board, lambda: "http://" in (tmp_path / "board.txt").read_text())
        address = re.search(r"http://[\d.:]+/", (tmp_path / "board.txt").read_text())
        assert address
        with urllib.request.urlopen(f"{address[0]}live/list", timeout=60) as events:
            assert "small" in b"".join(iter(events.readline, b"\n")).decode()
    finally:
        kill_group(board)
    missing = raymix("report", f"s3://{BUCKET}/runs/none")
    assert missing.returncode == 2 and "no run is there" in missing.stderr


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_two_nodes_without_a_shared_file_system_train_the_undisturbed_run(server: ObjectServer, tmp_path: Path) -> None:
    settings = {"training__max_steps": STEPS, "training__checkpoint_every": 20, "evaluation__every": 10}
    here = write_run(tmp_path, **settings)
    for file in (tmp_path / "base").iterdir():
        client.put(f"s3://{BUCKET}/base/{file.name}", file)
    for name in DOMAINS:
        for part in ("train", "eval"):
            client.put(f"s3://{BUCKET}/data/{name}-{part}.jsonl", tmp_path / f"{name}-{part}.jsonl")
    done = raymix("run", here, timeout_s=400)
    assert done.returncode == 0, done.stderr

    places = {name: f"s3://{BUCKET}/data/{name}" for name in DOMAINS}
    (tmp_path / "there").mkdir()
    there = write_run(
        tmp_path / "there",
        output_dir=f"s3://{BUCKET}/runs",
        model__path=f"s3://{BUCKET}/base",
        domains={name: {"train": f"{at}-train.jsonl", "eval": f"{at}-eval.jsonl"} for name, at in places.items()},
        **settings,
    )
    uri = f"s3://{BUCKET}/runs/small"
    with contextlib.closing(Nodes(tmp_path, server.environment)) as nodes:
        driver = nodes.run(there)
        wait_for(driver, lambda: client.look(f"{uri}/checkpoints/step-00000040/manifest.json") is not None, 300)
        kill_group(driver)
        shutil.rmtree(nodes.caches["head"])  # the driver's node lost all that it had
        driver = nodes.run(there)
        assert driver.wait(400) == 0, nodes.said()
        stores = {
            name: len(list(cache.glob("objects/s3/*/runs/token-stores/*/train")))
            for name, cache in nodes.caches.items()
        }
    assert stores == {"head": 3, "second": 3}
    stored = download(uri, tmp_path / "stored")
    kinds = [event["kind"] for event in read_lines(stored / "events.jsonl")]
    assert kinds.count("attempt") == 2 and "hang" not in kinds
    assert_equal_runs(stored, tmp_path / "runs" / "small")
    summaries = [json.loads((run / "summary.json").read_text()) for run in (stored, tmp_path / "runs" / "small")]
    assert summaries[0]["domains"] == summaries[1]["domains"] and summaries[0]["verdict"] == "improved"
    report = raymix("report", uri)
    assert report.returncode == 0, report.stderr
    export = raymix("export", uri, tmp_path / "exported")
    assert export.returncode == 0, export.stderr
    assert (tmp_path / "exported" / "model.safetensors").read_bytes() == (
        stored / "model" / "model.safetensors"
    ).read_bytes()
