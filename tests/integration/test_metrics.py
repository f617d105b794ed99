"""A real run, scraped by a real Prometheus as deploy/ configures it, and written down by all trackers."""

import json
import math
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import Any

import pytest

from tests.runs import DOMAINS, ROOT, kill_group, start, wait_for, write_run
from tests.unit.tracking.stores import read_mlflow, read_tensorboard, read_wandb
from workers.contracts import DomainFeedback, DomainWeights

NAME = "scraped"
BASE_LOSSES = 'ray_raymix_base_loss_nats{run="$run"}'
CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yml"
BOARD = json.loads((ROOT / "deploy" / "grafana" / "raymix.json").read_text())
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
        evaluation__every=10,
        cluster__num_workers=1,
        data__log_samples=False,
        tracking=["tensorboard", "mlflow", "wandb"],
    )
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_metrics_report_interval_ms", "1000")  # else 10 s
        environment.setenv("WANDB_MODE", "offline")
        environment.setenv("WANDB_ERROR_REPORTING", "false")
        environment.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
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
    runs = prometheus.ask("count by (run) (ray_raymix_step)")
    assert NAME in {answer["metric"]["run"] for answer in runs}  # what the board lets a person choose from


def test_all_trackers_hold_shares_and_losses_of_every_domain(running: Running) -> None:
    announced = Path(tempfile.gettempdir()) / "ray" / f"prom_metrics_raymix_{running.process.pid}.json"
    assert announced.exists()
    running.stop()  # the test above wants it under way
    assert not announced.exists()
    folder = running.folder
    _, mlflow = read_mlflow(f"sqlite:///{folder.parent / 'mlflow.db'}", evaluations(folder)[0].run_id)
    _, wandb = read_wandb(folder / "wandb")
    for series in (read_tensorboard(folder / "tensorboard"), mlflow, wandb):
        steps = [step for step, _ in series["train_loss_nats"]]
        assert steps == list(range(1, steps[-1] + 1)) and steps[-1] > 20
        told = [feedback for feedback in evaluations(folder) if feedback.step <= steps[-1]]
        begun = [weights for weights in versions(folder) if weights.effective_step <= steps[-1]]
        for domain in DOMAINS:
            losses = [(feedback.step, pytest.approx(feedback.loss_nats(domain), rel=1e-5)) for feedback in told]
            assert series[f"loss_nats/{domain}"] == losses
            shares = dict(series[f"share/{domain}"])
            for weights in begun:
                assert shares[weights.effective_step] == pytest.approx(weights.shares[domain], rel=1e-5)
    assert not [line for line in (folder / "events.jsonl").read_text().splitlines() if '"tracking"' in line]


def evaluations(folder: Path) -> list[DomainFeedback]:
    paths = sorted((folder / "feedback").glob("*.json"))
    return [DomainFeedback.model_validate_json(path.read_bytes()) for path in paths]


def versions(folder: Path) -> list[DomainWeights]:
    paths = sorted((folder / "weights").glob("*.json"))
    return [DomainWeights.model_validate_json(path.read_bytes()) for path in paths]


@needs_prometheus
def test_prometheus_takes_the_configuration_as_it_is() -> None:
    done = subprocess.run(["promtool", "check", "config", CONFIG], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
