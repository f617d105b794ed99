"""Useful tokens a second of `raymix run` against trl's SFTTrainer on the same rows and model, on the CPU.

    python -m venv FOLDER && FOLDER/bin/pip install torch==2.13.0 -r benchmarks/against_trl/requirements.txt \
        -c constraints.txt
    python benchmarks/against_trl/compare.py DATA --model FOLDER --trl-python FOLDER/bin/python [--rounds 3]

DATA has a folder for each domain, with `train.jsonl.gz` and `eval.jsonl.gz` of messages. Rows of all domains in equal
number, at most 512 tokens, 16 in a step, float32, answers as targets. A useful token is one that is not padding. trl
trains in one process that has all cores, and in two that have one each; packed with either of its strategies that a
CPU can run, of which neither keeps examples apart there. The fastest counts. raymix has two workers. Of each the median
step counts, without the first ones; then the median of the rounds.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROWS, LENGTH, NUM_STEPS, NUM_WARM_UP, ROWS_PER_DOMAIN = 16, 512, 20, 5, 1000
_TRAIN = Path(__file__).with_name("train.py")


def write_mixed(data: Path, domains: list[str], path: Path) -> None:
    """The first rows of each domain in turn, as prompt and completion, so that trl trains on answers too."""
    rows = []
    for name in domains:
        with gzip.open(data / name / "train.jsonl.gz", "rt", encoding="utf-8") as file:
            rows.append([json.loads(next(file))["messages"] for _ in range(ROWS_PER_DOMAIN)])
    mixed = [messages for of_row in zip(*rows, strict=True) for messages in of_row]
    lines = (json.dumps({"prompt": messages[:-1], "completion": messages[-1:]}) for messages in mixed)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure_trl(python: Path, arguments: list[str], num_processes: int) -> float:
    """Tokens a second of the median step."""
    launch = ["-m", "torch.distributed.run", f"--nproc_per_node={num_processes}"] if num_processes > 1 else []
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // num_processes))
    done = subprocess.run(
        [str(python), *launch, str(_TRAIN), *arguments], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"trl failed: {done.stderr[-2000:]}")
    steps = json.loads(done.stdout.strip().splitlines()[-1])[NUM_WARM_UP:]
    return statistics.median(tokens / seconds for tokens, seconds in steps)


def measure_raymix(folder: Path, data: Path, domains: list[str], model: Path, packing: bool) -> float:
    """Tokens a second of the median step of a run with live weights, on two workers."""
    kept = folder / "domains"
    for name in domains if not kept.exists() else ():
        (kept / name).mkdir(parents=True)
        with gzip.open(data / name / "train.jsonl.gz", "rt", encoding="utf-8") as file:
            (kept / name / "train.jsonl").write_text("".join(next(file) for _ in range(ROWS_PER_DOMAIN)))
    config: dict[str, Any] = {
        "name": f"packing-{packing}",
        "output_dir": str(folder / "runs"),
        "model": {"path": str(model), "dtype": "float32"},
        "domains": {
            name: {"train": str(kept / name / "train.jsonl"), "eval": str(data / name / "eval.jsonl.gz")}
            for name in domains
        },
        "data": {"max_length": LENGTH, "too_long": "truncate", "packing": packing, "cache_dir": str(folder / "stores")},
        "mixing": {"type": "uniform"},
        "training": {
            "max_steps": NUM_STEPS,
            "global_batch_size": ROWS,
            "micro_batch_size": ROWS // 2,
            "learning_rate": 1e-4,
            "checkpoint_every": NUM_STEPS,
        },
        "evaluation": {"every": NUM_STEPS, "max_rows": 8, "best": None},
        "cluster": {"num_workers": 2},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "orchestrator.cli.main", "run", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    metrics = folder / "runs" / config["name"] / "metrics.jsonl"
    steps = [json.loads(line) for line in metrics.read_text().splitlines()][NUM_WARM_UP:]
    return statistics.median(step["num_tokens"] / step["seconds"] for step in steps)


def compare(data: Path, model: Path, python: Path, packing: bool) -> float:
    """One round; prints it, and returns raymix's speed over the fastest of trl's."""
    domains = sorted(folder.name for folder in data.iterdir() if (folder / "train.jsonl.gz").exists())
    with tempfile.TemporaryDirectory(prefix="raymix-trl-") as name:
        folder = Path(name)
        write_mixed(data, domains, folder / "mixed.jsonl")
        sizes = ["--steps", str(NUM_STEPS), "--batch", str(ROWS), "--length", str(LENGTH)]
        files = ["--model", str(model), "--data", str(folder / "mixed.jsonl"), "--folder", str(folder / "trl")]
        theirs = {
            f"trl {strategy}, {num} processes": measure_trl(
                python, sizes + files + (["--packing", strategy] if packing else []), num
            )
            for strategy in (("bfd", "wrapped") if packing else ("unpacked",))
            for num in (1, 2)
        }
        ours = measure_raymix(folder, data, domains, model, packing)
    ratio = ours / max(theirs.values())
    listed = ", ".join(f"{name} {speed:,.0f}" for name, speed in theirs.items())
    print(f"{'packed' if packing else 'unpacked'}: raymix {ours:,.0f} tokens/s, {listed}: {ratio:.2f}x", flush=True)
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--trl-python", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    for packing in (False, True):
        ratios = [compare(given.data, given.model, given.trl_python, packing) for _ in range(given.rounds)]
        what = "packed" if packing else "unpacked"
        print(f"{what}: median {statistics.median(ratios):.2f}x of the fastest trl", flush=True)


if __name__ == "__main__":
    main()
