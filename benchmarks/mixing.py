"""Mixing on real data: VersaTune (with computed references) against uniform, same seed, same budget.

    python benchmarks/mixing.py DATA MODEL OUTPUT [--steps 200] [--algorithms uniform versatune]

DATA has a folder for each domain with train.jsonl.gz and eval.jsonl.gz; MODEL is a Hugging Face folder. Each algorithm
is one `raymix run`; a study that was stopped goes on. Ends with `raymix report` over the runs.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

MIXING: dict[str, dict[str, Any]] = {
    "uniform": {"type": "uniform"},
    "proportional": {"type": "proportional"},
    "versatune": {"type": "versatune", "initial": "uniform", "sigma": 0.5, "reference": "computed"},
}


def write_config(data: Path, model: Path, output: Path, algorithm: str, num_steps: int) -> Path:
    """The configuration of one run."""
    config = {
        "name": algorithm,
        "output_dir": str(output),
        "model": {"path": str(model), "dtype": "bfloat16"},
        "domains": {
            folder.name: {"train": str(folder / "train.jsonl.gz"), "eval": str(folder / "eval.jsonl.gz")}
            for folder in sorted(data.iterdir())
            if (folder / "train.jsonl.gz").exists()
        },
        "data": {"max_length": 512, "too_long": "truncate"},
        "mixing": MIXING[algorithm],
        "training": {
            "max_steps": num_steps,
            "global_batch_size": 8,
            "micro_batch_size": 4,
            "learning_rate": 5e-4,
            "deepspeed": {"zero_stage": 2},
        },
        "evaluation": {"every": max(1, num_steps // 10), "max_rows": 32},
        "cluster": {"num_workers": 2},
    }
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{algorithm}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def main() -> None:
    """Run every algorithm, then compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("data", "model", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--algorithms", nargs="+", choices=sorted(MIXING), default=["uniform", "versatune"])
    given = parser.parse_args()
    raymix = [sys.executable, "-m", "orchestrator.cli"]
    for algorithm in given.algorithms:
        config = write_config(given.data, given.model, given.output, algorithm, given.steps)
        subprocess.run([*raymix, "run", str(config)], check=True)
    runs = [str(given.output / algorithm) for algorithm in given.algorithms]
    subprocess.run([*raymix, "report", *runs, "--output", str(given.output / "comparison.html")], check=True)


if __name__ == "__main__":
    main()
