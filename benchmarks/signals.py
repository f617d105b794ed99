"""What the feedback signals cost: their seconds at an evaluation over the training seconds between two of them.

    python benchmarks/signals.py [--model FOLDER] [--steps 20] [--interval 100] [--json FILE]

Two workers, ZeRO-2, float32, four domains of generated conversations, 64 examples of each domain at an evaluation, once
for each reward of Mixture-of-Skills. A run evaluates at its start, middle and end; the cost at an evaluation every
INTERVAL steps follows from the mean seconds of these and from the median step. The base model's losses, which
the perplexity ratio needs once before the first step, are counted apart. A step trains on 64 rows of one or two
examples, about as many examples as in the paper's runs.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

NUM_WORKERS, ROWS, LENGTH, NUM_WARM_UP = 2, 64, 128, 3
REWARDS = ("similarity", "perplexity")


def write_run(folder: Path, model: Path, reward: str, num_steps: int) -> Path:
    """A run whose mixture follows one reward."""
    domains = {}
    for number, name in enumerate(("red", "green", "blue", "grey")):
        path = folder / f"{name}.jsonl"
        rows = (_conversation(name, row * (7 + number)) for row in range(1500))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        domains[name] = {"train": str(path)}
    config: dict[str, Any] = {
        "name": reward,
        "output_dir": str(folder),
        "model": {"path": str(model), "dtype": "float32"},
        "domains": domains,
        "data": {"max_length": LENGTH, "too_long": "truncate"},
        "mixing": {"type": "mixture_of_skills", "reward": reward},
        "training": {
            "max_steps": num_steps,
            "global_batch_size": ROWS,
            "micro_batch_size": 8,
            "learning_rate": 1e-4,
            "checkpoint_every": num_steps,
        },
        "evaluation": {"every": max(1, num_steps // 2), "max_rows": 8, "best": None},
        "cluster": {"num_workers": NUM_WORKERS},
    }
    path = folder / f"{reward}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def _conversation(name: str, number: int) -> dict[str, Any]:
    question = f"{name} {number % 997}"
    answer = " ".join(str(number * i % 89) for i in range(1, 8 + number % 9))
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def measure(run: Path, interval: int) -> dict[str, float]:
    """Seconds of a step, of the signals at an evaluation, and of the base model; and their cost as a fraction."""
    steps = [line["seconds"] for line in _read_lines(run / "metrics.jsonl")][NUM_WARM_UP:]
    signals = [line["values"]["signal_seconds"] for line in _read_lines(run / "mixing.jsonl")]
    told = [line["message"] for line in _read_lines(run / "events.jsonl") if line["kind"] == "signals"]
    step = statistics.median(steps)
    return {
        "step_seconds": step,
        "signal_seconds": statistics.mean(signals),
        "base_seconds": sum(float(match[1]) for message in told if (match := re.search(r"took ([\d.]+) s", message))),
        "fraction_of_training": statistics.mean(signals) / (interval * step),
    }


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    """Run once for each reward and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--interval", type=int, default=100)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as name:
        model = given.model
        if model is None:
            from orchestrator.cli.demo.driver import write_demo

            model = write_demo(Path(name) / "demo").parent / "base"
        for reward in REWARDS:
            config = write_run(Path(name), model, reward, given.steps)
            raymix = [sys.executable, "-m", "orchestrator.cli.main", "run", str(config)]
            subprocess.run(raymix, check=True, stdout=subprocess.DEVNULL)
            result = results[reward] = measure(Path(name) / reward, given.interval)
            print(
                f"{reward:12} step {result['step_seconds']:6.3f} s   signals {result['signal_seconds']:6.3f} s   "
                f"every {given.interval} steps {100 * result['fraction_of_training']:5.2f} % of training   "
                f"base model once {result['base_seconds']:5.1f} s",
                flush=True,
            )
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
