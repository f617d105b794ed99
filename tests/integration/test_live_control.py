"""Weights changed by hand while a run trains, by the command line and over the dashboard: they hold within a step, on
all ranks, and outlive a SIGKILL of the controller or of all; without the dashboard's token nothing is changed."""

import json
import os
import signal
import stat
import subprocess
from collections import Counter
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.dashboards import Server, ask
from tests.runs import kill_group, listening, num_lines, ray_processes, raymix, read_lines, start, wait_for, write_run

NUM_STEPS, ROWS_PER_STEP = 140, 8
OVER_THE_PAGE: list[dict[str, Any]] = [
    {"kind": "set", "shares": {"copy": 0.2}, "by": "cleo", "why": "seen on the page"},
    {"kind": "pin", "shares": {"add": 0.3}, "by": "cleo"},
    {"kind": "pause", "by": "cleo"},
    {"kind": "release", "by": "cleo"},
    {"kind": "resume", "by": "cleo", "why": "that was all"},
]


def versions(run: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((run / "weights").glob("[0-9]*.json"))]


def by_operators(run: Path) -> list[dict[str, Any]]:
    return [version for version in versions(run) if version["reason"] == "operator"]


def steer_over_the_page(server: Server, process: subprocess.Popen[bytes], run: Path) -> list[dict[str, Any]]:
    """Nothing without the token; with it each request becomes the run's next version by a person."""
    address = f"{server.base}/control/small"
    for headers, status in (
        ({}, 401),
        ({"token": "a-token-that-was-guessed"}, 401),
        ({"token": server.token, "Origin": "https://elsewhere.example"}, 403),
    ):
        for request in OVER_THE_PAGE:
            assert ask(address, request | {"by": "eve"}, **headers) == status
            assert not list(run.glob("requests/*")) and not by_operators(run)
    for number, request in enumerate(OVER_THE_PAGE):
        assert ask(address, request, server.token) == 202
        wait_for(process, lambda number=number: len(by_operators(run)) > number)
    return by_operators(run)


def assert_kept_to_this_machine_and_user(driver: int) -> None:
    """Ray with its agents and workers, torch and gloo of both ranks."""
    waiting = listening(driver)
    assert len(waiting) > 15
    assert not [each for each in waiting if not ip_address(each[0].removeprefix("::ffff:")).is_loopback]
    token = Path.home() / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    raylet = psutil.Process(min(ray_processes(driver, "--raylet_socket_name")))
    (socket,) = (word.partition("=")[2] for word in raylet.cmdline() if word.startswith("--raylet_socket_name="))
    modes = [stat.S_IMODE(folder.stat().st_mode) for folder in Path(socket).parents]
    assert 0o700 in modes  # in which no other user gets to what is inside


def rows_by_step(run: Path) -> dict[int, Counter[str]]:
    """Rows of each domain that the two ranks trained on together."""
    rows: dict[int, Counter[str]] = {}
    for line in read_lines(run / "samples.jsonl"):
        rows.setdefault(line["step"], Counter())[line["domain"]] += len(line["rows"])
    return rows


@pytest.mark.timeout(400)
@pytest.mark.parametrize("killed", ["controller", pytest.param("all", marks=pytest.mark.soak)])
def test_shares_set_and_pinned_by_hand_hold_from_their_step_on(tmp_path: Path, killed: str) -> None:
    changes = {"training__max_steps": NUM_STEPS, "training__checkpoint_every": 20, "evaluation__every": 5}
    config = write_run(tmp_path, data__packing=False, **changes)  # a row is an example, the unit of the shares
    run = tmp_path / "runs" / "small"
    (tmp_path / "runs").mkdir()
    server = Server(tmp_path / "runs")
    process = start("run", config)
    wait_for(process, lambda: num_lines(run / "metrics.jsonl") >= 12)
    assert_kept_to_this_machine_and_user(process.pid)
    over_the_page = steer_over_the_page(server, process, run)
    assert [(version["by"], version["why"]) for version in over_the_page] == [
        ("cleo", request.get("why", "")) for request in OVER_THE_PAGE
    ]
    assert over_the_page[0]["shares"]["copy"] == pytest.approx(0.2)
    assert [version["pinned"] for version in over_the_page] == [[], ["add"], ["add"], [], []]
    assert [version["paused"] for version in over_the_page] == [False, False, True, True, False]
    assert server.stop() == 0
    pinned = raymix("weights", run, "pin", "law=0.5", "--by", "anna", "--why", "the court waits")
    assert pinned.returncode == 0, pinned.stderr
    assert "anna: add 0." in pinned.stdout and "law pinned (the court waits)" in pinned.stdout
    *others, change = by_operators(run)
    assert others == over_the_page
    wait_for(process, lambda: num_lines(run / "metrics.jsonl") >= change["effective_step"] + 16)
    if killed == "controller":
        os.kill(min(ray_processes(process.pid, "ControllerActor")), signal.SIGKILL)
    else:
        kill_group(process)
        process = start("run", config)
    # What was asked holds on, and another change, asked for before the controller is there again, is taken up.
    set_after = raymix("weights", run, "set", "add=0", "--by", "ben")
    assert set_after.returncode == 0, set_after.stderr
    assert process.wait(timeout=240) == 0
    history = versions(run)
    *others, first, second = by_operators(run)
    assert others == over_the_page and first == change and (second["by"], second["pinned"]) == ("ben", ["law"])
    since = history[first["version"] :]
    assert all(version["shares"]["law"] == 0.5 and version["pinned"] == ["law"] for version in since)
    moved = {version["shares"]["copy"] for version in since if version["version"] < second["version"]}
    assert len(moved) > 3  # the algorithm moves the rest

    rows = rows_by_step(run)
    assert sorted(rows) == list(range(1, NUM_STEPS + 1))
    for number, version in enumerate(history):
        end = history[number + 1]["effective_step"] if number + 1 < len(history) else NUM_STEPS + 1
        given: Counter[str] = Counter()
        for step in range(version["effective_step"], end):
            given += rows[step]
            for name, share in version["shares"].items():  # a row of target, and a row that was owed before
                assert abs(given[name] - share * given.total()) <= 2, (version, step)
                assert share or not given[name]
    for line in read_lines(run / "metrics.jsonl"):  # 0 stale rows: every step was trained with the version that holds
        holds = [v["version"] for v in history if v["effective_step"] <= line["step"]][-1]
        assert line["weights_version"] == holds and sum(line["rows"].values()) == ROWS_PER_STEP

    late = raymix("weights", run, "set", "law=0.2", "--by", "ben")
    assert late.returncode == 1 and "this run is finished" in late.stderr
    told = raymix("weights", run, "history")
    assert "the court waits" in " ".join(told.stdout.split())
