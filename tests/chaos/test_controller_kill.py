"""R6: the controller's process is killed at random moments; no acknowledged update is lost, none counts twice."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.soak import few
from tests.unit.controller.test_journal import feedback, open_controller
from workers.contracts import DomainWeights

ROOT = Path(__file__).parents[2]
NUM_STEPS = 150
# Pushes every step from 0 on, also those that an earlier process has pushed, and says what was answered.
CHILD = """
import os, sys
from pathlib import Path
from orchestrator.controller import journal
from tests.unit.controller.test_journal import feedback, open_controller
die_after = sys.argv[2]
write = journal.write_durably
def write_and_die(path, data):
    write(path, data)
    if die_after and str(path).endswith(die_after):
        os.kill(os.getpid(), 9)
journal.write_durably = write_and_die
controller = open_controller(Path(sys.argv[1]))
attempt = controller.open_attempt()
for step in range(int(sys.argv[3])):
    answer = controller.push(feedback(step, attempt))
    print(answer.model_dump_json(), flush=True)
"""


def child(folder: Path, num_steps: int, die_after: str = "") -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-c", CHILD, str(folder), die_after, str(num_steps)]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def check(folder: Path, acknowledged: dict[int, DomainWeights]) -> None:
    """Everything that was answered stands on disk, once, with rising steps and versions."""
    history = open_controller(folder).history()
    for step, answer in acknowledged.items():
        assert history[answer.version] == answer
        assert answer.effective_step <= step + 1
    assert [version.version for version in history] == list(range(len(history)))
    steps = [version.effective_step for version in history]
    assert steps == sorted(steps)
    assert len(list((folder / "feedback").glob("[0-9]*.json"))) == len(history) - 1


@pytest.fixture(scope="module")
def untroubled(tmp_path_factory: pytest.TempPathFactory) -> list[DomainWeights]:
    controller = open_controller(tmp_path_factory.mktemp("untroubled"))
    for step in range(NUM_STEPS):
        controller.push(feedback(step))
    return controller.history()


@pytest.mark.parametrize("times", few([8, 20], 1))
def test_killed_again_and_again_at_random(tmp_path: Path, untroubled: list[DomainWeights], times: int) -> None:
    choice = random.Random(0)
    acknowledged: dict[int, DomainWeights] = {}
    for _ in range(times):
        process = child(tmp_path, NUM_STEPS)
        assert process.stdout is not None
        lines = [process.stdout.readline()]  # it is up: importing is over
        time.sleep(choice.uniform(0, 0.08))
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.read().splitlines()
        process.wait()
        for step, line in enumerate(line for line in lines if line.strip().endswith("}")):
            answer = DomainWeights.model_validate_json(line)
            assert acknowledged.setdefault(step, answer) == answer  # a version never goes back or changes
        check(tmp_path, acknowledged)
    assert child(tmp_path, NUM_STEPS).wait(60) == 0
    assert open_controller(tmp_path).history() == untroubled
    assert open_controller(tmp_path).core.attempt == times + 1


@pytest.mark.parametrize("die_after", ["feedback/00000007.json", "weights/000008.json", "weights/000000.json"])
def test_killed_between_two_files(tmp_path: Path, untroubled: list[DomainWeights], die_after: str) -> None:
    process = child(tmp_path, 20, die_after)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / die_after).exists()
    check(tmp_path, {s: DomainWeights.model_validate_json(line) for s, line in enumerate(output.splitlines())})
    assert child(tmp_path, 20).wait(60) == 0
    assert open_controller(tmp_path).history() == untroubled[:21]
