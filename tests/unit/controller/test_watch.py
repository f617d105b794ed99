"""Which rank hangs or is slow, by hand-written reports."""

from dataclasses import replace

import pytest

from orchestrator.controller.watch import RankWatch
from workers.training.progress import Progress

BOUND = 60.0


def report(
    rank: int,
    phase: str = "training",
    quiet_s: float = 0.1,
    median_step_s: float | None = 1.0,
    median_pass_s: float | None = None,
) -> Progress:
    return Progress(rank, f"node{rank}", 100 + rank, phase, 7, quiet_s, median_step_s, median_pass_s)


def test_ranks_that_report_and_go_on_do_not_hang() -> None:
    watch = RankWatch()
    assert watch.find_hang(BOUND, now=1000.0) is None
    for rank in range(3):
        watch.hear(report(rank, quiet_s=59.0), f"actor {rank}", now=1000.0)
    assert watch.find_hang(BOUND, now=1060.0) is None


def test_the_rank_that_is_silent_longest_hangs_whatever_its_phase() -> None:
    watch = RankWatch()
    watch.hear(report(0), "actor 0", now=1000.0)
    watch.hear(report(1, "loading the model", median_step_s=None), "actor 1", now=995.0)
    hang = watch.find_hang(BOUND, now=1060.5)
    assert hang is not None and hang.actor == "actor 1"
    assert str(hang) == (
        "rank 1 on node1 (pid 101), last reported as loading the model at step 7, has reported nothing for 66 s"
    )


@pytest.mark.parametrize(
    ("phase", "median_step_s", "quiet_s", "hangs"),
    [
        ("training", 1.0, 61.0, True),
        ("evaluating", 1.0, 61.0, True),
        ("training", 8.0, 61.0, False),  # a step may take ten times its median
        ("training", 8.0, 81.0, True),
        ("training", None, 61.0, False),  # the first step compiles
        ("writing the checkpoint", 1.0, 1e4, False),
    ],
)
def test_a_steady_phase_without_progress_is_a_hang(
    phase: str, median_step_s: float | None, quiet_s: float, hangs: bool
) -> None:
    watch = RankWatch()
    watch.hear(report(0, phase, quiet_s - 0.5, median_step_s), "actor 0", now=1000.0)
    watch.hear(report(1, phase, quiet_s, median_step_s), "actor 1", now=1000.0)  # waits for no one
    hang = watch.find_hang(BOUND, now=1001.0)
    assert (hang is not None) == hangs
    if hang:
        assert hang.actor == "actor 1" and f"no progress for {quiet_s:.0f} s" in str(hang)


def test_a_process_that_is_gone_is_forgotten_and_its_successor_is_not() -> None:
    watch = RankWatch()
    watch.hear(report(0), "actor 0", now=1000.0)
    watch.forget(replace(report(0), pid=999))
    assert watch.find_hang(BOUND, now=1100.0) is not None
    watch.forget(report(0))
    assert watch.find_hang(BOUND, now=1100.0) is None


@pytest.mark.parametrize(
    ("median_pass_s", "slow"),
    [
        ([0.1, 0.1, 0.5], 2),
        ([0.2, 0.1, 0.1], 0),
        ([0.19, 0.1, 0.1], None),
        ([0.5, 0.5, 0.5], None),
        ([0.5, 0.1], 0),
        ([0.1, None, 0.5], None),  # one has not begun
        ([0.5], None),
    ],
)
def test_the_rank_that_the_others_wait_for_is_named_once(median_pass_s: list[float | None], slow: int | None) -> None:
    watch = RankWatch()
    for rank, seconds in enumerate(median_pass_s):
        watch.hear(report(rank, median_pass_s=seconds), f"actor {rank}", now=1000.0)
    told = watch.find_slow()
    assert (told is not None) == (slow is not None)
    if told:
        assert told.startswith(f"rank {slow} on node{slow} (pid {100 + slow}) is slow") and "0.1 s" in told
    assert watch.find_slow() is None


def test_a_slow_process_that_took_the_rank_of_a_slow_one_is_named_too() -> None:
    watch = RankWatch()
    for rank, seconds in enumerate((0.5, 0.1)):
        watch.hear(report(rank, median_pass_s=seconds), f"actor {rank}", now=1000.0)
    assert watch.find_slow() is not None
    watch.hear(replace(report(0, median_pass_s=0.5), pid=200), "successor", now=1001.0)
    told = watch.find_slow()
    assert told is not None and "(pid 200)" in told
