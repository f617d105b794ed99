"""A worker group on a real cluster of two raylets, one of which is killed and comes back."""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.controller.operator import read_versions
from tests.raylets import free_port, ray_environment, start_raylet
from tests.runs import ROOT, kill_group, num_lines, raymix, read_lines, wait_for, write_run

STEPS = 600


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_node_that_is_lost_and_comes_back_changes_no_sample(tmp_path: Path) -> None:
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
    environment, port = ray_environment(), free_port()
    head = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir=/tmp/re{port}")
    node = (f"--address=127.0.0.1:{port}", "--node-ip-address=127.0.0.2")
    nodes = []
    try:
        nodes.append(start_raylet(tmp_path / "head.log", environment, *head))
        nodes.append(start_raylet(tmp_path / "node.log", environment, *node))
        command = [sys.executable, "-m", "orchestrator.cli.main", "run", str(config)]
        changes = [
            f"output_dir={run.parent}",
            f"cluster.address=127.0.0.1:{port}",
            "cluster.num_workers={min: 1, max: 2}",
        ]
        command += [part for change in changes for part in ("--set", change)]
        with (tmp_path / "run.log").open("wb") as log:
            driver = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        nodes.append(driver)
        wait_for(driver, lambda: num_lines(run / "metrics.jsonl") >= 30)
        kill_group(nodes.pop(1))
        wait_for(driver, lambda: len(groups(run)) == 2)
        wait_for(driver, lambda: saved(run) > groups(run)[1]["step"])
        nodes.append(start_raylet(tmp_path / "back.log", environment, *node))
        wait_for(driver, lambda: len(groups(run)) == 3)
        assert driver.wait(300) == 0, (tmp_path / "run.log").read_text()
    finally:
        for process in nodes:
            if process.poll() is None:
                kill_group(process)

    told = [event["message"] for event in groups(run)]
    assert told == ["group of 2", "group of 1: a node was lost", "group of 2: a node came"]

    done = raymix("run", config, "--set", f"output_dir={undisturbed.parent}")
    assert done.returncode == 0, done.stderr
    theirs, ours = samples(undisturbed), samples(run)
    assert len(theirs) >= STEPS and [key for key in theirs if ours.get(key) != theirs[key]] == []
    assert ours.keys() == theirs.keys()
    versions = [[version.shares for version in read_versions(folder)] for folder in (run, undisturbed)]
    assert len(versions[0]) == len(versions[1]) > 5
    for mine, their in zip(*versions, strict=True):
        assert mine == pytest.approx(their, abs=1e-6)
    by_step = [sizes(folder) for folder in (run, undisturbed)]
    assert set(by_step[0].values()) == {1, 2} and set(by_step[1].values()) == {2}
    losses = [[line["loss_nats"] for line in read_lines(folder / "metrics.jsonl")] for folder in (run, undisturbed)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0, atol=1e-5)


def groups(run: Path) -> list[dict[str, Any]]:
    path = run / "events.jsonl"
    return [event for event in read_lines(path) if event["kind"] == "group"] if path.exists() else []


def saved(run: Path) -> int:
    return max((int(path.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*")), default=0)


def samples(run: Path) -> dict[tuple[int, str], list[int]]:
    """The rows of each step and domain, in the order of the global batch, whichever rank trained on them."""
    rows: dict[tuple[int, str], list[int]] = defaultdict(list)
    for line in read_lines(run / "samples.jsonl"):
        rows[line["step"], line["domain"]] += line["rows"]
    return rows


def sizes(run: Path) -> dict[int, int]:
    """Ranks that trained each step."""
    ranks: dict[int, set[int]] = defaultdict(set)
    for line in read_lines(run / "samples.jsonl"):
        ranks[line["step"]].add(line["rank"])
    return {step: len(seen) for step, seen in ranks.items()}
