"""One controller and many workers: how long a pull and a push take, and how the controller's memory grows.

    python benchmarks/controller.py [--workers 10 100 1000] [--seconds 20] [--messages 1000000] [--json FILE]

A worker here is a coroutine without a model that calls the real actor over Ray. In training only the first rank of a
run calls; here every worker does. Latencies: each worker pulls once a second, as at the begin of a step, and after
every tenth step pushes an evaluation; as the workers of many runs, each is at a step of its own. All workers push the
same evaluation of a step, so the first is counted and written to disk, and the others are repetitions, which
at-least-once delivery brings too. Memory: the largest number of workers pull and push
without a pause until all messages are sent; resident memory of the controller's process is read after every twentieth.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import ray

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from orchestrator.controller.actor import ControllerActor  # noqa: E402
from orchestrator.mixing import Domain, Measured, ResolvedMixing, resolve_mixing  # noqa: E402
from orchestrator.mixing.versatune import VersaTuneConfig  # noqa: E402
from workers.contracts import DomainFeedback  # noqa: E402

DOMAINS = [Domain(name, 1000, 1000) for name in ("math", "code", "law", "medicine", "general", "science", "news")]
EVERY = 10  # steps from one evaluation to the next
SAMPLES = 20


class Load:
    """Workers that call one controller."""

    def __init__(self, actor: Any, pid: int) -> None:
        self.actor, self.process = actor, psutil.Process(pid)
        self.step = 0
        self.seconds: dict[str, list[float]] = {"pull": [], "push": []}
        self.num_messages = 0

    async def call(self, method: str, argument: Any) -> None:
        began = time.perf_counter()
        answer = await getattr(self.actor, method).remote(argument)
        self.seconds[method].append(time.perf_counter() - began)
        self.num_messages += 1
        assert answer is not None

    async def steps(self, first: int, last: int, pause_s: float) -> None:
        """One worker's calls for these steps, or as many that begin up to nine steps later."""
        await asyncio.sleep(random.random() * pause_s)
        later = random.randrange(EVERY)
        for step in range(first + later, last + later):
            began = time.perf_counter()
            await self.call("pull", step)
            if step % EVERY == 0:
                await self.call("push", evaluation(step))
            await asyncio.sleep(max(pause_s - (time.perf_counter() - began), 0))

    async def run(self, num_workers: int, num_steps: int, pause_s: float) -> None:
        """All workers' calls for the next steps."""
        first, self.step = self.step + 1, self.step + num_steps
        await asyncio.gather(*(self.steps(first, self.step + 1, pause_s) for _ in range(num_workers)))

    def percentile(self, method: str, part: float) -> float:
        """Milliseconds within which this part of the calls was answered."""
        values = sorted(self.seconds[method])
        return 1000 * values[min(int(part * len(values)), len(values) - 1)]

    def memory(self) -> float:
        """MiB."""
        return float(self.process.memory_info().rss) / 2**20


def evaluation(step: int) -> DomainFeedback:
    """What all workers push after a step."""
    losses = {domain.name: 4000 * (1.5 + 1 / (1 + 0.01 * step) + 0.1 * place) for place, domain in enumerate(DOMAINS)}
    tokens = dict.fromkeys(losses, 4000)
    return DomainFeedback(
        run_id="load", attempt=1, step=step, weights_version=0, loss_sum_nats=losses, num_tokens=tokens
    )


def mixing() -> ResolvedMixing:
    """VersaTune with a reference for each domain."""
    reference = {domain.name: 1.2 for domain in DOMAINS}
    return resolve_mixing(
        VersaTuneConfig(type="versatune", initial="uniform", reference=reference), Measured(), list(reference)
    )


async def measure(load: Load, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures, told as they come."""
    await load.call("push", evaluation(0))
    latencies = []
    for num_workers in arguments.workers:
        load.seconds = {"pull": [], "push": []}
        await load.run(num_workers, arguments.seconds, pause_s=1.0)
        row: dict[str, Any] = {"workers": num_workers}
        for method in ("pull", "push"):
            row |= {f"{method}_p50_ms": load.percentile(method, 0.5), f"{method}_p99_ms": load.percentile(method, 0.99)}
        latencies.append(row)
        print(
            "  ".join(
                f"{key} {value:.1f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
        )
    load.num_messages, memory = 0, [load.memory()]
    steps = max(arguments.messages // max(arguments.workers) * EVERY // (EVERY + 1) // SAMPLES, EVERY)
    began = time.perf_counter()
    while load.num_messages < arguments.messages:
        load.seconds = {"pull": [], "push": []}
        await load.run(max(arguments.workers), steps, pause_s=0.0)
        memory.append(load.memory())
    rate = load.num_messages / (time.perf_counter() - began)
    print(f"{load.num_messages:,} messages, {rate:,.0f} a second; memory of the controller, MiB:")
    print(" ".join(f"{value:.0f}" for value in memory))
    return {"latencies": latencies, "num_messages": load.num_messages, "per_second": rate, "memory_mib": memory}


def main() -> None:
    """Start Ray, the controller and the load."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--seconds", type=int, default=20, help="of each latency measurement")
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    ray.init(
        num_cpus=2, include_dashboard=False, logging_level="ERROR", runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}
    )

    class Controller(ControllerActor):
        def pid(self) -> int:
            import os

            return os.getpid()

    with tempfile.TemporaryDirectory() as folder:
        actor: Any = ray.remote(num_cpus=0)(Controller).remote(Path(folder), "load", mixing(), DOMAINS)
        figures = asyncio.run(measure(Load(actor, ray.get(actor.pid.remote())), arguments))
    ray.shutdown()
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
