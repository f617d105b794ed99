"""One driver at a time on object storage: what a lease grants, refuses, waits for, and tells when it is lost."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orchestrator.runs.lock import FolderInUseError, hold
from tests.runs import ROOT
from workers.storage import client, lease
from workers.storage.addresses import place_of
from workers.storage.lease import LeaseHeldError, leased

HOLD = """
import sys, time
from pathlib import Path
from workers.storage import lease
from workers.storage.addresses import place_of
lease.RENEW_SECONDS = 0.3
with lease.leased(place_of(sys.argv[1]), False, print) as is_newest:
    print(is_newest, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"RENEW": 0.3, "EXPIRE": 2.0, "SETTLE": 0.2, "_LOOK": 0.1}.items():
        monkeypatch.setattr(lease, f"{name}_SECONDS", seconds)


def hold_elsewhere(uri: str, cache: Path) -> "subprocess.Popen[str]":
    """A process of another node, which holds a lease until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, uri],
        cwd=ROOT,
        env=os.environ | {"RAYMIX_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() in ("True\n", "False\n")
    return process


def test_a_driver_on_another_node_is_refused_while_the_lease_is_renewed(uri: str, tmp_path: Path) -> None:
    path, told = place_of(f"{uri}/run/.driver.lock"), []
    process = hold_elsewhere(f"{uri}/run/.driver.lock", tmp_path / "other")
    try:
        refusal = f"the process {process.pid} on .* is already training this run"
        with pytest.raises(LeaseHeldError, match=refusal), leased(path, False, print, told.append):
            pass
        with pytest.raises(FolderInUseError, match="is already training"), hold(path, "in use"):
            pass
    finally:
        process.kill()
        process.wait()
    assert f"the process {process.pid}" in told[0]
    began = time.monotonic()
    with leased(path, False, print, told.append) as is_newest:  # nobody renews it any more
        assert not is_newest
    assert time.monotonic() - began > 1.5


def test_whoever_waits_gets_it_when_it_is_released(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, entered = place_of(f"{uri}/run/.driver.lock"), threading.Event()

    def wait() -> None:
        with leased(path, True, print):
            entered.set()

    with leased(path, False, print):
        monkeypatch.setattr(lease, "cache_id", lambda: "another")
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not entered.wait(4)  # longer than a lease lives that nobody renews
    assert entered.wait(5)
    waiting.join()


def test_the_same_node_takes_it_over_at_once(uri: str) -> None:
    path = place_of(f"{uri}/run/.driver.lock")
    with leased(path, False, print) as is_newest:
        assert not is_newest  # the first ever
    process = hold_elsewhere(f"{uri}/run/.driver.lock", Path(os.environ["RAYMIX_CACHE"]))
    process.send_signal(signal.SIGKILL)
    process.wait()
    began = time.monotonic()
    with leased(path, False, print) as is_newest:
        assert is_newest
    assert time.monotonic() - began < 1


def test_of_many_that_begin_at_once_one_gets_it(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, results, barrier = place_of(f"{uri}/run/.driver.lock"), [], threading.Barrier(6)
    over = threading.Event()
    monkeypatch.setattr(lease, "cache_id", lambda: str(threading.get_ident()))

    def begin() -> None:
        barrier.wait()
        try:
            with leased(path, False, print, lambda message: None):
                results.append("got it")
                over.wait(30)
        except LeaseHeldError:
            results.append("refused")
        if len(results) == 6:
            over.set()

    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(results) == ["got it"] + 5 * ["refused"]


def test_a_lease_that_another_driver_took_is_told(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, lost = place_of(f"{uri}/run/.driver.lock"), []
    with leased(path, False, lost.append):
        client.put(f"{uri}/run/.driver.lock", b'{"holder": "other", "cache": "x", "host": "there", "pid": 7}')
        for _ in range(50):
            time.sleep(0.1)
            if lost:
                break
    assert lost == [f"{uri}/run/.driver.lock: the process 7 on there has taken over this run; this one ends"]
    assert b'"other"' in (client.get_bytes(f"{uri}/run/.driver.lock") or b"")


def test_an_ordinary_lock_has_no_lease(tmp_path: Path) -> None:
    with hold(tmp_path / "run" / ".driver.lock", "in use") as is_newest:
        assert is_newest
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".driver.lock"]
