"""A worker group on a real cluster of two raylets, one of which is killed and comes back."""

import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from orchestrator.controller.operator import read_versions
from tests.raylets import free_port, ray_environment, start_raylet
from tests.runs import ROOT, kill_group, num_lines, raymix, read_lines, wait_for, write_run

STEPS = 400
HANG_SECONDS = 20


class TwoNodes:
    """A cluster whose second node leaves and comes, and a run on it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._environment, self._port = folder, ray_environment(), free_port()
        self._processes = [
            self._start("head", "--head", f"--port={self._port}", "--include-dashboard=false", self._temporary())
        ]
        self.start_second()

    def start_second(self) -> None:
        self._second = self._start("second", f"--address=127.0.0.1:{self._port}", "--node-ip-address=127.0.0.2")

    def kill_second(self) -> None:
        kill_group(self._second)

    def run(self, config: Path, *changes: str) -> subprocess.Popen[bytes]:
        """Start a run."""
        command = [sys.executable, "-m", "orchestrator.cli.main", "run", str(config)]
        command += [part for each in (f"cluster.address=127.0.0.1:{self._port}", *changes) for part in ("--set", each)]
        with (self._folder / "run.log").open("wb") as log:
            driver = subprocess.Popen(
                command, cwd=ROOT, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(driver)
        return driver

    def said(self) -> str:
        return (self._folder / "run.log").read_text()

    def close(self) -> None:
        for process in (*self._processes, self._second):
            if process.poll() is None:
                kill_group(process)

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        return start_raylet(self._folder / f"{name}.log", self._environment, *arguments)

    def _temporary(self) -> str:
        return f"--temp-dir=/tmp/re{self._port}"  # short: it is part of the paths of sockets


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[TwoNodes]:
    cluster = TwoNodes(tmp_path)
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_node_that_is_lost_and_comes_back_changes_no_sample(nodes: TwoNodes, tmp_path: Path) -> None:
    config = write_run(
        tmp_path,
        training__max_steps=STEPS,
        training__checkpoint_every=20,
        # At the usual 0.003 a difference in the last digit grows past any tolerance within 300 steps, and the shares,
        # which follow the losses, with it.
        training__learning_rate=1e-4,
        evaluation__every=50,
    )
    run, undisturbed = tmp_path / "there" / "small", tmp_path / "here" / "small"
    driver = nodes.run(config, f"output_dir={run.parent}", "cluster.num_workers={min: 1, max: 2}")
    wait_for(driver, lambda: num_lines(run / "metrics.jsonl") >= 30)
    nodes.kill_second()
    wait_for(driver, lambda: len(told(run)) == 2)
    nodes.start_second()
    assert driver.wait(300) == 0, nodes.said()
    assert told(run) == ["group of 2", "group of 1: a node was lost", "group of 2: a node came"]

    done = raymix("run", config, "--set", f"output_dir={undisturbed.parent}")
    assert done.returncode == 0, done.stderr
    ours, theirs = samples(run), samples(undisturbed)
    assert len(theirs) >= STEPS and ours.keys() == theirs.keys()
    assert [key for key in theirs if ours[key] != theirs[key]] == []
    assert sizes(run) == {1, 2} and sizes(undisturbed) == {2}
    versions = [[version.shares for version in read_versions(folder)] for folder in (run, undisturbed)]
    assert len(versions[0]) == len(versions[1]) > 5
    for mine, their in zip(*versions, strict=True):
        assert mine == pytest.approx(their, abs=1e-6)
    losses = [[line["loss_nats"] for line in read_lines(folder / "metrics.jsonl")] for folder in (run, undisturbed)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-5)


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_with_too_few_nodes_it_waits_and_nobody_is_said_to_hang(nodes: TwoNodes, tmp_path: Path) -> None:
    config = write_run(tmp_path, training__max_steps=60, training__micro_batch_size=1)
    run = tmp_path / "runs" / "small"
    driver = nodes.run(config, "cluster.num_workers={min: 2, max: 4}", f"cluster.hang_seconds={HANG_SECONDS}")
    wait_for(driver, lambda: num_lines(run / "metrics.jsonl") >= 30)
    nodes.kill_second()
    wait_for(driver, lambda: len(told(run)) == 2)
    time.sleep(2 * HANG_SECONDS)  # so that the rank that is left would be taken to hang
    nodes.start_second()
    assert driver.wait(240) == 0, nodes.said()
    assert told(run) == ["group of 2", "waiting for room for a group of 2, the smallest allowed", "group of 2"]
    assert "hang" not in [event["kind"] for event in read_lines(run / "events.jsonl")]


def told(run: Path) -> list[str]:
    """What the run says of its group."""
    path = run / "events.jsonl"
    return [event["message"] for event in read_lines(path) if event["kind"] == "group"] if path.exists() else []


def samples(run: Path) -> dict[tuple[int, str], list[int]]:
    """The rows of each step and domain, in the order of the global batch, whichever rank trained on them."""
    rows: dict[tuple[int, str], list[int]] = defaultdict(list)
    for line in read_lines(run / "samples.jsonl"):
        rows[line["step"], line["domain"]] += line["rows"]
    return rows


def sizes(run: Path) -> set[int]:
    """Numbers of ranks that trained a step."""
    ranks: dict[int, set[int]] = defaultdict(set)
    for line in read_lines(run / "samples.jsonl"):
        ranks[line["step"]].add(line["rank"])
    return {len(seen) for seen in ranks.values()}


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_run_that_waits_for_room_can_be_stopped(nodes: TwoNodes, tmp_path: Path) -> None:
    config = write_run(tmp_path, training__max_steps=60, training__micro_batch_size=1)
    run = tmp_path / "runs" / "small"
    driver = nodes.run(config, "cluster.num_workers={min: 2, max: 4}")
    wait_for(driver, lambda: num_lines(run / "metrics.jsonl") >= 30)
    nodes.kill_second()
    wait_for(driver, lambda: len(told(run)) == 2)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(120) == 130, nodes.said()
    assert "stopped; run the same command to resume" in nodes.said() and "Traceback" not in nodes.said()
