"""A search whose driver is killed half-way, on a cluster of two raylets that wants a token: what is done a second time,
what stays taken, and whether the best configuration, run alone, gives what its trial gave.

    python benchmarks/search.py [--type random|optuna] [--trials 8] [--workers 2] [--json FILE]

The cluster is started and ended here, with as many CPUs on each raylet as a trial has workers. The trials are the
demo's run, cut to 48 steps, over sigma and the learning rate; a random search halves them by ASHA. SIGKILL comes once
half of the trials are over.
"""

import argparse
import functools
import hashlib
import json
import os
import re
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from orchestrator.cli.demo.driver import write_demo
from orchestrator.sweeps.tune.trials import SearchRecord
from workers.contracts import DomainFeedback

STEPS, EVERY, GRACE = 48, 4, 8
SPACE = {"mixing.sigma": {"uniform": [0.1, 1.0]}, "training.learning_rate": {"loguniform": [1e-4, 1e-2]}}
NAME = "searched"


@contextmanager
def cluster(num_cpus: int) -> Iterator[tuple[str, dict[str, str]]]:
    """Two raylets with so many CPUs each; the head's address and the environment of those who may join."""
    port, dashboard_port, agent_port = free_port(), free_port(), free_port()
    address = f"127.0.0.1:{port}"
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    nodes = (
        [
            f"--port={port}",
            "--head",
            f"--dashboard-port={dashboard_port}",
            f"--dashboard-agent-listen-port={agent_port}",
        ],
        [f"--address={address}", "--node-ip-address=127.0.0.2"],
    )
    raylets: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        try:
            for number, arguments in enumerate(nodes):
                command = [
                    Path(sys.executable).parent / "ray",
                    "start",
                    "--block",
                    f"--num-cpus={num_cpus}",
                    *arguments,
                ]
                command += [f"--temp-dir={folder}"] if number == 0 else []
                log_path = Path(folder) / f"node{number}.log"
                with log_path.open("wb") as log:
                    raylets.append(
                        subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
                    )
                wait_until(lambda path=log_path: "--block" in path.read_text(), 60)
            yield address, environment
        finally:
            for raylet in reversed(raylets):
                raylet.terminate()
                raylet.wait(60)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(is_time: Callable[[], Any], timeout_s: float) -> None:
    """Look again and again."""
    end = time.monotonic() + timeout_s
    while not is_time():
        if time.monotonic() > end:
            raise TimeoutError("the moment never came")
        time.sleep(0.05)


def write_search(folder: Path, kind: str, num_trials: int, num_workers: int, address: str) -> Path:
    """The configuration of the search."""
    content: dict[str, Any] = yaml.safe_load(write_demo(folder / "demo").read_text())
    content |= {"name": NAME, "output_dir": str(folder / "runs")}
    content["training"] |= {"max_steps": STEPS, "checkpoint_every": STEPS}
    content["evaluation"]["every"] = EVERY
    content["reference"]["max_steps"] = STEPS // 6
    content["cluster"] = {"address": address, "num_workers": num_workers}
    content["search"] = {"type": kind, "num_trials": num_trials, "space": SPACE}
    if kind == "random":
        content["search"]["asha"] = {"grace_steps": GRACE, "reduction_factor": 2}
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def over(search: Path) -> list[Path]:
    """Trials that have come to their end, early or not."""
    return sorted(
        path for path in search.glob("trial-*") if any((path / n).exists() for n in ("summary.json", "stopped.json"))
    )


def digests(trials: list[Path]) -> dict[str, str]:
    """Of all that was trained and measured in each."""
    return {
        trial.name: hashlib.blake2b(
            b"".join((trial / name).read_bytes() for name in ("metrics.jsonl", "events.jsonl"))
        ).hexdigest()
        for trial in trials
    }


def free_cpus(address: str, environment: dict[str, str]) -> tuple[float, float]:
    """CPUs that nothing holds, and all."""
    script = f"import ray; ray.init({address!r}, log_to_driver=False, logging_level='error'); "
    script += "print(ray.available_resources().get('CPU', 0), ray.cluster_resources()['CPU'])"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    free, total = map(float, done.stdout.split())
    return free, total


def measure(folder: Path, kind: str, num_trials: int, num_workers: int) -> dict[str, Any]:
    """The search, killed and gone on with."""
    with cluster(num_workers) as (address, environment):
        config = write_search(folder, kind, num_trials, num_workers, address)
        search = folder / "runs" / f"{NAME}-tune"
        raymix = [sys.executable, "-m", "orchestrator.cli.main"]
        tune = [*raymix, "tune", str(config)]
        call = functools.partial(subprocess.run, env=environment, capture_output=True, text=True, check=True)

        began = time.perf_counter()
        first = subprocess.Popen(tune, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: len(over(search)) >= num_trials // 2, 1200)
        first.send_signal(signal.SIGKILL)
        first.wait()
        seconds_before = time.perf_counter() - began
        before = digests(over(search))

        began = time.perf_counter()
        again = call(tune)
        seconds_after = time.perf_counter() - began
        known = re.search(r"(\d+) of \d+ trials are done already", again.stdout)
        wait_until(lambda: len(set(free_cpus(address, environment))) == 1, 60)
        free, total = free_cpus(address, environment)
        record = SearchRecord.model_validate_json((search / "search.json").read_bytes())
        assert record.best is not None
        after = digests([search / name for name in before])
        alone = call([*raymix, "run", str(search / "best.yaml")])
        assert "Traceback" not in alone.stderr
    feedback = max((folder / "runs" / f"{NAME}-best" / "feedback").glob("*.json"))
    losses = DomainFeedback.model_validate_json(feedback.read_bytes())
    return {
        "type": kind,
        "seconds": [seconds_before, seconds_after],
        "over_at_the_kill": len(before),
        "known_again": int(known[1]) if known else 0,
        "unchanged": sum(after[name] == before[name] for name in before),
        "states": [trial.state for trial in record.trials],
        "free_cpus": free,
        "cpus": total,
        "best_trial": next(trial.score for trial in record.trials if trial.name == record.best),
        "best_alone": statistics.fmean(losses.loss_nats(name) for name in losses.num_tokens),
    }


def main() -> None:
    """Print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", choices=("random", "optuna"), default="random")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), given.type, given.trials, given.workers)
    states = found["states"]
    print(f"{found['type']}: {len(states)} trials of {given.workers} workers and {STEPS} steps")
    before, after = found["seconds"]
    print(f"killed with {found['over_at_the_kill']} over after {before:.0f} s; started again, {after:.0f} s to the end")
    print(f"known again {found['known_again']}, unchanged to the byte {found['unchanged']}")
    print(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))
    print(f"free afterwards: {found['free_cpus']:g} of {found['cpus']:g} CPUs")
    print(f"best trial {found['best_trial']!r}, alone {found['best_alone']!r} nats per token")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
