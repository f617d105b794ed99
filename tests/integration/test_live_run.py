"""A run under way, steered by a person over the page and the command line, scraped by a real Prometheus as deploy/
configures it, and written down by trackers: what was set by hand holds within a step, on all ranks, and outlives a
SIGKILL of the controller or of all; without the dashboard's token nothing is changed."""

import json
import math
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from socket import socket
from typing import Any

import psutil
import pytest

from tests.dashboards import Server, ask
from tests.runs import (
    DOMAINS,
    ROOT,
    kill_group,
    listening,
    num_lines,
    ray_processes,
    raymix,
    read_lines,
    start,
    wait_for,
    write_run,
)
from tests.unit.tracking.stores import read_mlflow, read_tensorboard, read_wandb
from workers.contracts import DomainFeedback, DomainWeights

NAME = "scraped"
ROWS_PER_STEP = 8
BASE_LOSSES = 'ray_raymix_base_loss_nats{run="$run"}'
CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yml"
BOARD = json.loads((ROOT / "deploy" / "grafana" / "raymix.json").read_text())
OVER_THE_PAGE: list[dict[str, Any]] = [
    {"kind": "set", "shares": {"copy": 0.2}, "by": "cleo", "why": "seen on the page"},
    {"kind": "pin", "shares": {"add": 0.3}, "by": "cleo"},
    {"kind": "pause", "by": "cleo"},
    {"kind": "release", "by": "cleo"},
    {"kind": "resume", "by": "cleo", "why": "that was all"},
]
EXPRESSIONS = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="no prometheus on this machine; on Debian: apt-get install prometheus",
)


class Prometheus:
    """A server, asked over HTTP."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now; none while the server starts."""
        query = urllib.parse.urlencode({"query": expression.replace("$run", NAME)})
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/query?{query}", timeout=5) as answer:
                result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            if error.code == 503:  # it is still starting
                return []
            raise AssertionError(f"{expression}: {error.read().decode()}") from error
        except (urllib.error.URLError, ConnectionError):
            return []
        return result

    def unanswered(self, expressions: list[str]) -> list[str]:
        return [expression for expression in expressions if not self.ask(expression)]


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Prometheus]:
    """As deploy/ configures it, but for how often it looks."""
    text = CONFIG.read_text()
    assert text.count(" 10s") == 2
    config = tmp_path / "prometheus.yml"
    config.write_text(text.replace(" 10s", " 1s"))
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (tmp_path / "prometheus.log").open("wb") as log:
        server = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={tmp_path / 'series'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            yield Prometheus(port)
        finally:
            server.terminate()
            server.wait()


@dataclass
class Running:
    """A run that is under way and does not end by itself."""

    process: subprocess.Popen[bytes]
    folder: Path

    def wait_for_step(self, step: int) -> None:
        wait_for(self.process, lambda: num_lines(self.folder / "metrics.jsonl") >= step)

    def stop(self) -> None:
        """As a person or a scheduler stops it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(90)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("tracked")
    config = write_run(
        folder,
        name=NAME,
        mixing={"type": "mixture_of_skills", "reward": "perplexity"},  # so that signals are measured
        training__max_steps=100_000,
        training__checkpoint_every=100_000,
        evaluation__every=5,
        data__packing=False,  # a row is an example, the unit of the shares
        tracking=["tensorboard"],
    )
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_metrics_report_interval_ms", "1000")  # else 10 s
        process = start("run", config)
    running = Running(process, folder / "runs" / NAME)
    try:
        wait_for(process, lambda: len(list(running.folder.glob("feedback/*.json"))) > 3)
        yield running
    finally:
        if process.poll() is None:
            kill_group(process)


@needs_prometheus
def test_prometheus_finds_every_series_that_the_board_asks_for(running: Running, prometheus: Prometheus) -> None:
    names = {name for expression in EXPRESSIONS for name in re.findall(r"ray_raymix_\w+", expression)}
    assert len(names) > 15
    waiting = [f'{name}{{run="$run"}}' for name in sorted(names)] + EXPRESSIONS
    until = time.monotonic() + 60
    while waiting := prometheus.unanswered(waiting):
        assert time.monotonic() < until, f"not there: {waiting}"
        assert running.process.poll() is None
        time.sleep(0.5)
    answers = [answer for expression in EXPRESSIONS for answer in prometheus.ask(expression)]
    assert all(math.isfinite(float(answer["value"][1])) for answer in answers)
    shares = prometheus.ask('ray_raymix_share{run="$run"}')
    assert {answer["metric"]["domain"] for answer in shares} == set(DOMAINS)
    assert math.fsum(float(answer["value"][1]) for answer in shares) == pytest.approx(1)
    (base, *_) = evaluations(running.folder)
    losses = {answer["metric"]["domain"]: float(answer["value"][1]) for answer in prometheus.ask(BASE_LOSSES)}
    assert losses == {domain: pytest.approx(base.loss_nats(domain)) for domain in DOMAINS}
    assert announcement(running).exists()
    runs = prometheus.ask("count by (run) (ray_raymix_step)")
    assert NAME in {answer["metric"]["run"] for answer in runs}  # what the board lets a person choose from


def test_it_is_kept_to_this_machine_and_its_user(running: Running) -> None:
    """Ray with its agents and workers, torch and gloo of both ranks."""
    waiting = listening(running.process.pid)
    assert len(waiting) > 15
    assert not [each for each in waiting if not ip_address(each[0].removeprefix("::ffff:")).is_loopback]
    token = Path.home() / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    raylet = psutil.Process(min(ray_processes(running.process.pid, "--raylet_socket_name")))
    (name,) = (word.partition("=")[2] for word in raylet.cmdline() if word.startswith("--raylet_socket_name="))
    modes = [stat.S_IMODE(folder.stat().st_mode) for folder in Path(name).parents]
    assert 0o700 in modes  # in which no other user gets to what is inside


def test_what_was_set_and_pinned_by_hand_holds_from_its_step_on(running: Running) -> None:
    def kill_controller() -> None:
        os.kill(min(ray_processes(running.process.pid, "ControllerActor")), signal.SIGKILL)

    first, second = steer(running, kill_controller)
    running.wait_for_step(second["effective_step"] + 40)
    running.stop()
    assert_versions_hold(running.folder, first, second, read_lines(running.folder / "metrics.jsonl")[-1]["step"])


def test_a_tracker_holds_shares_and_losses_of_every_domain(running: Running) -> None:
    running.stop()  # the tests above want it under way
    assert not announcement(running).exists()
    assert_tracked(running.folder, read_tensorboard(running.folder / "tensorboard"))


@pytest.mark.soak
def test_all_trackers_hold_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    done = raymix("run", write_run(tmp_path, tracking=["tensorboard", "mlflow", "wandb"]))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "small"
    _, mlflow = read_mlflow(f"sqlite:///{folder.parent / 'mlflow.db'}", evaluations(folder)[0].run_id)
    _, wandb = read_wandb(folder / "wandb")
    for series in (read_tensorboard(folder / "tensorboard"), mlflow, wandb):
        assert_tracked(folder, series)


def assert_tracked(folder: Path, series: dict[str, Any]) -> None:
    """Every step, evaluation and version up to the last step is there, with the values of the run's own files."""
    steps = [step for step, _ in series["train_loss_nats"]]
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] > 20
    told = [feedback for feedback in evaluations(folder) if feedback.step <= steps[-1]]
    begun = {weights.effective_step: weights for weights in versions(folder) if weights.effective_step <= steps[-1]}
    for domain in DOMAINS:
        losses = [(feedback.step, pytest.approx(feedback.loss_nats(domain), rel=1e-5)) for feedback in told]
        assert series[f"loss_nats/{domain}"] == losses
        shares = dict(series[f"share/{domain}"])
        for step, weights in begun.items():  # of several versions from one step on, the last
            assert shares[step] == pytest.approx(weights.shares[domain], rel=1e-5)
    assert not [line for line in (folder / "events.jsonl").read_text().splitlines() if '"tracking"' in line]


@needs_prometheus
def test_prometheus_takes_the_configuration_as_it_is() -> None:
    done = subprocess.run(["promtool", "check", "config", CONFIG], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_it_holds_when_everything_is_killed(tmp_path: Path) -> None:
    num_steps = 140
    changes = {"training__max_steps": num_steps, "training__checkpoint_every": 20, "evaluation__every": 5}
    config = write_run(tmp_path, data__packing=False, **changes)
    running = Running(start("run", config), tmp_path / "runs" / "small")
    running.wait_for_step(12)

    def kill_and_start_again() -> None:
        kill_group(running.process)
        running.process = start("run", config)

    first, second = steer(running, kill_and_start_again)
    assert running.process.wait(timeout=240) == 0
    assert_versions_hold(running.folder, first, second, num_steps)


def steer(running: Running, kill: Callable[[], None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Requests over the page, one from the command line, a kill, and another; the versions of these two."""
    run = running.folder
    server = Server(run.parent)
    over_the_page = steer_over_the_page(server, running.process, run)
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
    *others, first = by_operators(run)
    assert others == over_the_page
    running.wait_for_step(first["effective_step"] + 16)
    kill()
    # What was asked holds on, and another change, asked for before the controller is there again, is taken up.
    set_after = raymix("weights", run, "set", "add=0", "--by", "ben")
    assert set_after.returncode == 0, set_after.stderr
    wait_for(running.process, lambda: len(by_operators(run)) > len(over_the_page) + 1)
    *others, unchanged, second = by_operators(run)
    assert others == over_the_page and unchanged == first
    assert (second["by"], second["pinned"]) == ("ben", ["law"])
    told = raymix("weights", run, "history")
    assert "the court waits" in " ".join(told.stdout.split())
    return first, second


def steer_over_the_page(server: Server, process: subprocess.Popen[bytes], run: Path) -> list[dict[str, Any]]:
    """Nothing without the token; with it each request becomes the run's next version by a person."""
    address = f"{server.base}/control/{run.name}"
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


def rows_by_step(run: Path) -> dict[int, Counter[str]]:
    """Rows of each domain that the two ranks trained on together."""
    rows: dict[int, Counter[str]] = {}
    for line in read_lines(run / "samples.jsonl"):
        rows.setdefault(line["step"], Counter())[line["domain"]] += len(line["rows"])
    return rows


def assert_versions_hold(run: Path, first: dict[str, Any], second: dict[str, Any], num_steps: int) -> None:
    """Every step up to the last was trained with the version in force, and every version's shares were given."""
    history = journal(run)
    since = history[first["version"] :]
    assert all(version["shares"]["law"] == 0.5 and version["pinned"] == ["law"] for version in since)
    moved = {version["shares"]["copy"] for version in since if version["version"] < second["version"]}
    assert len(moved) > 3  # the algorithm moves the rest
    rows = rows_by_step(run)
    assert sorted(rows) == list(range(1, num_steps + 1))
    for number, version in enumerate(history):
        end = history[number + 1]["effective_step"] if number + 1 < len(history) else num_steps + 1
        given: Counter[str] = Counter()
        for step in range(version["effective_step"], end):
            given += rows[step]
            for name, share in version["shares"].items():  # a row of target, and a row that was owed before
                assert abs(given[name] - share * given.total()) <= 2, (version, step)
                assert share or not given[name]
    for line in read_lines(run / "metrics.jsonl"):  # 0 stale rows: every step was trained with the version that holds
        holds = [v["version"] for v in history if v["effective_step"] <= line["step"]][-1]
        assert line["weights_version"] == holds and sum(line["rows"].values()) == ROWS_PER_STEP


def journal(run: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((run / "weights").glob("[0-9]*.json"))]


def by_operators(run: Path) -> list[dict[str, Any]]:
    return [version for version in journal(run) if version["reason"] == "operator"]


def evaluations(folder: Path) -> list[DomainFeedback]:
    paths = sorted((folder / "feedback").glob("*.json"))
    return [DomainFeedback.model_validate_json(path.read_bytes()) for path in paths]


def versions(folder: Path) -> list[DomainWeights]:
    paths = sorted((folder / "weights").glob("*.json"))
    return [DomainWeights.model_validate_json(path.read_bytes()) for path in paths]


def announcement(running: Running) -> Path:
    """The file by which Prometheus finds the session."""
    return Path(tempfile.gettempdir()) / "ray" / f"prom_metrics_raymix_{running.process.pid}.json"
