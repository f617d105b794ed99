"""A run beset by faults of every kind, drawn at random, is the undisturbed run."""

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.test_kill import assert_equal_runs
from tests.runs import kill_group, num_lines, ray_processes, raymix, read_lines, start, wait_for, write_run

NUM_STEPS, CHECKPOINT_EVERY = 1000, 20
RUN = {
    "training__max_steps": NUM_STEPS,
    "training__checkpoint_every": CHECKPOINT_EVERY,
    "evaluation__every": 10,
    "cluster__max_failures": 100,
    "cluster__hang_seconds": 15,
}


@dataclass
class Beset:
    """A run under way, and what is done to it."""

    config: Path
    rng: random.Random
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.process = start("run", self.config)

    @property
    def folder(self) -> Path:
        return self.config.parent / "runs" / "small"

    def signal_one(self, name: str, number: signal.Signals) -> None:
        if found := ray_processes(self.process.pid, name):
            os.kill(self.rng.choice(found), number)

    def kill_all(self) -> None:
        kill_group(self.process)
        self.process = start("run", self.config)

    def ask_to_end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)
        self.process = start("run", self.config)

    def hold_driver(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(self.rng.uniform(1, 10))
        self.process.send_signal(signal.SIGCONT)

    def faults(self) -> dict[str, Callable[[], None]]:
        return {
            "a rank is killed": lambda: self.signal_one("RayTrainWorker", signal.SIGKILL),
            "a rank is stopped": lambda: self.signal_one("RayTrainWorker", signal.SIGSTOP),
            "the controller is killed": lambda: self.signal_one("ControllerActor", signal.SIGKILL),
            "the controller is stopped": lambda: self.signal_one("ControllerActor", signal.SIGSTOP),
            "all are killed": self.kill_all,
            "SIGTERM": self.ask_to_end,
            "the driver is stopped for a while": self.hold_driver,
        }


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_it_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    seed = int(os.environ.get("RAYMIX_FAULTS_SEED", time.time()))
    print(f"RAYMIX_FAULTS_SEED={seed}")
    (tmp_path / "undisturbed").mkdir()
    (tmp_path / "beset").mkdir()
    done = raymix("run", write_run(tmp_path / "undisturbed", **RUN), timeout_s=900)
    assert done.returncode == 0, done.stderr
    beset = Beset(write_run(tmp_path / "beset", **RUN), random.Random(seed))
    metrics, num_faults = beset.folder / "metrics.jsonl", 0
    while beset.process.poll() is None:
        # Once it trains again: a run that is only ever started again gets nowhere.
        wait_for(beset.process, partial(has_moved, beset, num_lines(metrics)), timeout_s=300)
        time.sleep(beset.rng.uniform(1, 6))
        if is_done(beset):
            break
        name, fault = beset.rng.choice(list(beset.faults().items()))
        print(f"step {num_lines(metrics)}: {name}")
        fault()
        num_faults += 1
    assert beset.process.wait(300) == 0
    assert num_faults > 3, "the run was over too soon; give it more steps"
    assert_equal_runs(beset.folder, tmp_path / "undisturbed" / "runs" / "small")
    begins = [line["message"] for line in read_lines(beset.folder / "events.jsonl") if line["kind"] == "attempt"]
    resumed = [int(found[1]) for message in begins if (found := re.search(r"resumes after step (\d+)", message))]
    print(f"{num_faults} faults, {len(begins)} attempts, resumed after steps {resumed}")
    assert resumed == sorted(resumed)  # nothing that was durable was ever lost


def has_moved(beset: Beset, num_steps: int) -> bool:
    return num_lines(beset.folder / "metrics.jsonl") != num_steps or is_done(beset)


def is_done(beset: Beset) -> bool:
    return beset.process.poll() is not None or (beset.folder / "summary.json").exists()
