"""The first signal asks, the second interrupts."""

import os
import signal
import threading

import pytest

from orchestrator.training.driver import run_until_stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_the_work_ends_as_it_likes(number: int) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    asked, ended = threading.Event(), []

    def work() -> None:
        os.kill(os.getpid(), number)
        ended.append(asked.wait(10))

    run_until_stopped(work, asked.set)
    assert ended == [True]
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_the_second_signal_interrupts() -> None:
    asked, never = threading.Event(), threading.Event()

    def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        asked.wait(10)
        os.kill(os.getpid(), signal.SIGINT)
        never.wait(10)

    with pytest.raises(KeyboardInterrupt):
        run_until_stopped(work, asked.set)
    never.set()


def test_where_nobody_would_hear_it_the_first_signal_interrupts() -> None:
    asked, never = threading.Event(), threading.Event()

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        never.wait(10)

    with pytest.raises(KeyboardInterrupt):
        run_until_stopped(work, asked.set, is_idle=asked.is_set)
    assert asked.is_set()
    never.set()


def test_what_the_work_raises_is_raised_here() -> None:
    def work() -> None:
        raise ValueError("the work's own")

    with pytest.raises(ValueError, match="the work's own"):
        run_until_stopped(work, lambda: None)


def test_in_another_thread_the_event_asks_once() -> None:
    asked: list[str] = []
    stopping, ending = threading.Event(), threading.Event()

    def ask() -> None:
        asked.append("asked")
        ending.set()

    thread = threading.Thread(target=lambda: run_until_stopped(lambda: ending.wait(10), ask, stopping))
    thread.start()
    assert not asked
    stopping.set()
    thread.join()
    assert asked == ["asked"]
