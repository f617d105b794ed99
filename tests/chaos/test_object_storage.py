"""A run on object storage whose server, driver or node is killed is the undisturbed run."""

import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.test_kill import assert_equal_runs
from tests.objects import BUCKET, ObjectServer, serving
from tests.runs import kill_group, num_lines, raymix, read_lines, start, wait_for, write_run
from workers.storage import client
from workers.storage.addresses import place_of

RUNS = f"s3://{BUCKET}/runs"
GONE_SECONDS = 20
NUM_STEPS = 1500
RUN = {
    "training__max_steps": NUM_STEPS,
    "training__checkpoint_every": 20,
    "evaluation__every": 10,
    "cluster__hang_seconds": 15,  # shorter than the server is gone, which must not look like a hang
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    with serving(tmp_path / "server", tmp_path / "cache", monkeypatch) as server:
        yield server


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_server_that_is_gone_five_times_and_a_driver_that_is_killed_twice_change_nothing(
    server: ObjectServer, tmp_path: Path
) -> None:
    seed = int(os.environ.get("RAYMIX_FAULTS_SEED", time.time()))
    print(f"RAYMIX_FAULTS_SEED={seed}")
    rng = random.Random(seed)
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    done = raymix("run", write_run(tmp_path / "here", **RUN), timeout_s=900)
    assert done.returncode == 0, done.stderr
    config = write_run(tmp_path / "there", output_dir=RUNS, **RUN)
    copy = place_of(f"{RUNS}/small")
    driver = start("run", config)
    faults = ["server"] * 5 + ["driver"] * 2
    rng.shuffle(faults)
    for fault in faults:
        seen = num_lines(copy / "metrics.jsonl")
        wait_for(driver, partial(has_moved, copy, seen), timeout_s=300)
        time.sleep(rng.uniform(0, 4))
        assert driver.poll() is None, "the run was over too soon; give it more steps"
        print(f"step {num_lines(copy / 'metrics.jsonl')}: {fault}")
        if fault == "server":
            server.kill()
            time.sleep(GONE_SECONDS)
            server.start()
        else:
            kill_group(driver)
            driver = start("run", config)
    assert driver.wait(600) == 0
    stored = bring_all(f"{RUNS}/small", tmp_path / "stored")
    events = read_lines(stored / "events.jsonl")
    assert [event for event in events if event["kind"] == "hang"] == []
    assert any("does not answer" in event["message"] for event in events if event["kind"] == "storage")
    assert_equal_runs(stored, tmp_path / "here" / "runs" / "small")


def has_moved(copy: Path, num_steps: int) -> bool:
    return num_lines(copy / "metrics.jsonl") != num_steps


def bring_all(uri: str, folder: Path) -> Path:
    """Every object of a run, as files."""
    for name in client.list_objects(uri):
        assert client.get(f"{uri}/{name}", folder / name)
    return folder


@pytest.mark.soak
def test_a_run_whose_node_is_lost_is_the_undisturbed_run(server: ObjectServer, finished: Path, tmp_path: Path) -> None:
    references = read_references(finished)
    config = write_run(tmp_path, output_dir=RUNS, mixing__reference=references)
    copy = place_of(f"{RUNS}/small")
    driver = start("run", config)
    wait_for(driver, lambda: client.look(f"{RUNS}/small/checkpoints/step-00000010/manifest.json") is not None)
    kill_group(driver)
    assert 0 < num_lines(copy / "metrics.jsonl") < 30
    shutil.rmtree(tmp_path / "cache")
    done = raymix("run", config)
    assert done.returncode == 0, done.stderr
    stored = bring_all(f"{RUNS}/small", tmp_path / "stored")
    begins = [event["message"] for event in read_lines(stored / "events.jsonl") if event["kind"] == "attempt"]
    assert "resumes after step" in begins[-1]
    assert_equal_runs(stored, finished)


def read_references(run: Path) -> dict[str, float]:
    losses: dict[str, float] = json.loads((run / "reference.json").read_text())["loss_nats"]
    return losses
