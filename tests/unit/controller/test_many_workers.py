"""A thousand workers at one controller, out of step, every message twice: nothing is lost, and nothing stays."""

import gc
import random
import tracemalloc
from pathlib import Path

from orchestrator.controller.journal import DurableController
from tests.unit.controller.test_journal import feedback, files, open_controller

NUM_WORKERS = 1000
NUM_MESSAGES = 100_000
EVERY = 10


def send(controller: DurableController, num_messages: int, first: int, last: int, drawn: random.Random) -> None:
    """Pulls and pushes of workers that are at steps between these; pushes of an evaluation in any order, and again."""
    workers = [drawn.randint(first, last) for _ in range(NUM_WORKERS)]
    for number in range(num_messages):
        worker = number % NUM_WORKERS
        step = workers[worker] = min(workers[worker] + 1, last)
        assert controller.pull(step) is not None
        if step % EVERY == 0:
            controller.push(feedback(step))


def test_each_evaluation_counts_once_and_memory_is_flat(tmp_path: Path) -> None:
    drawn = random.Random(7)
    controller = open_controller(tmp_path)
    controller.open_attempt()
    for step in range(0, 200, EVERY):  # the first to come is counted; the others are late
        controller.push(feedback(step))
        send(controller, NUM_WORKERS, max(step - EVERY, 1), step + EVERY - 1, drawn)
    assert len(list((tmp_path / "feedback").iterdir())) == 20
    assert len(controller.history()) == 1 + 20
    before = files(tmp_path)
    gc.collect()
    tracemalloc.start()
    try:
        send(controller, NUM_MESSAGES, 150, 199, drawn)
        gc.collect()
        grown_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert files(tmp_path) == before
    assert grown_bytes < 2**16
