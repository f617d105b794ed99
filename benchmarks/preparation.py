"""Preparation: rows per second into token stores, and the CPU of a warm `raymix check`, against another commit's.

    python benchmarks/preparation.py DATA MODEL [--against COMMIT] [--rounds N] [--json FILE]

DATA holds a folder a domain with train.jsonl.gz and eval.jsonl.gz, MODEL is a model folder. Both trees run in turn,
each measurement in a process of its own, tokenizers single-threaded. Seconds are CPU seconds, which other work on the
machine disturbs less, and the median of the rounds' ratios counts.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
_PREPARE = """
import json, sys, time
from pathlib import Path
from orchestrator.config.load import load_config
from orchestrator.prepare.token_stores import prepare_stores
config = load_config(Path(sys.argv[1]))
start = time.process_time()
stores = prepare_stores(config.domains, config.data, config.model, Path(sys.argv[2]))
seconds = time.process_time() - start
print(json.dumps({"rows": sum(domain.report.num_rows for domain in stores.values()), "seconds": seconds}))
"""


def write_config(data: Path, model: Path, folder: Path) -> Path:
    """A configuration over all domains of the data."""
    names = sorted(path.parent.name for path in data.glob("*/train.jsonl.gz"))
    config = {
        "name": "preparation",
        "output_dir": str(folder / "runs"),
        "model": {"path": str(model.resolve()), "dtype": "float32"},
        "domains": {
            name: {part: str(data.resolve() / name / f"{part}.jsonl.gz") for part in ("train", "eval")}
            for name in names
        },
        "data": {"max_length": 512},
        "mixing": {"type": "uniform"},
        "training": {"epochs": 1, "global_batch_size": 16, "micro_batch_size": 2},
        "cluster": {"num_workers": 2},
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def call(tree: Path, *arguments: str) -> tuple[str, float]:
    """Output and CPU seconds of a Python process that imports from the tree."""
    environment = os.environ | {"PYTHONPATH": str(tree), "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, check=True, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(tree: Path, config: Path, folder: Path) -> dict[str, float]:
    """Rows per CPU second of a cold preparation, and CPU seconds of a check that finds its stores."""
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        output, _ = call(tree, "-c", _PREPARE, str(config), cache)
        made: dict[str, float] = json.loads(output.splitlines()[-1])
        check = ("-m", "orchestrator.cli.main", "check", str(config), "--set", f"data.cache_dir={cache}")
        call(tree, *check)  # the first one warms the files
        return {"rows_per_second": made["rows"] / made["seconds"], "check_seconds": call(tree, *check)[1]}


def main() -> None:
    """Measure both trees in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--against", default="HEAD", help="commit to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        other = folder / "other"
        other.mkdir()
        archive = subprocess.run(["git", "archive", given.against], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(other)], input=archive, check=True)
        config = write_config(given.data, given.model, folder)
        rounds: list[dict[str, Any]] = []
        for number in range(given.rounds):
            trees = [("this tree", ROOT), (given.against, other)]
            measured = {name: measure(tree, config, folder) for name, tree in trees[:: -1 if number % 2 else 1]}
            rounds.append(measured)
            for name, _ in trees:
                found = measured[name]
                print(
                    f"{name:<12} {found['rows_per_second']:8,.0f} rows/s  check {found['check_seconds']:.2f} s",
                    flush=True,
                )
    ratios = {
        key: statistics.median(measured["this tree"][key] / measured[given.against][key] for measured in rounds)
        for key in ("rows_per_second", "check_seconds")
    }
    print(f"this tree / {given.against}: rows/s x {ratios['rows_per_second']:.3f}, check {ratios['check_seconds']:.3f}")
    if given.json:
        given.json.write_text(json.dumps({"rounds": rounds, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
