"""A rank's report about itself."""

import threading
import time

import pytest
import torch

from workers.training.progress import Progress, ProgressMeter, reporting


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_phase_a_step_and_a_forward_pass_are_progress() -> None:
    clock = Clock()
    meter = ProgressMeter(3, clock)
    module = torch.nn.Linear(2, 2)
    meter.follow(module)
    clock.now += 5
    assert (meter.read().rank, meter.read().phase, meter.read().quiet_s) == (3, "starting", 5)
    meter.enter("training", 4)
    clock.now += 2
    assert (meter.read().phase, meter.read().step, meter.read().quiet_s) == ("training", 4, 2)
    module(torch.zeros(1, 2))
    assert meter.read().quiet_s == 0
    clock.now += 3
    meter.end_step(5.0)
    assert meter.read().quiet_s == 0


def test_only_training_and_evaluating_are_steady_and_only_after_a_step() -> None:
    meter = ProgressMeter()
    meter.enter("training", 1)
    assert meter.read().median_step_s is None and not meter.read().is_steady
    for seconds in (9.0, 1.0, 2.0):
        meter.end_step(seconds)
    assert meter.read().median_step_s == 2.0
    steady = {}
    for phase in ("training", "evaluating", "writing the checkpoint", "waiting for the weights"):
        meter.enter(phase, 2)
        steady[phase] = meter.read().is_steady
    assert [phase for phase, is_steady in steady.items() if is_steady] == ["training", "evaluating"]


@pytest.mark.timeout(20)
def test_reports_go_on_after_one_that_failed_and_end_with_the_block() -> None:
    heard: list[Progress] = []
    enough = threading.Event()

    def report(progress: Progress) -> None:
        heard.append(progress)
        if len(heard) == 1:
            raise ConnectionError("the controller restarts")
        if len(heard) == 3:
            enough.set()

    with reporting(ProgressMeter(1), report, every_s=0.01):
        assert enough.wait(10)
    for thread in threading.enumerate():
        if thread.name == "progress":
            thread.join(5)
            assert not thread.is_alive()


def test_the_duration_of_forward_passes_is_their_median() -> None:
    class Sleeps(torch.nn.Module):
        def forward(self, seconds: float) -> None:
            time.sleep(seconds)

    meter, module = ProgressMeter(), Sleeps()
    meter.follow(module)
    for seconds in (0.3, *[0.02] * 4, *[0.05] * 4):
        module(seconds)
    assert meter.read().median_pass_s is None  # too few to be told from the first
    for _ in range(4):
        module(0.05)
    assert meter.read().median_pass_s == pytest.approx(0.05, abs=0.02)
