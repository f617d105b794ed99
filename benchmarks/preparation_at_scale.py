"""Preparation of many rows: peak memory by number of rows, and rows per second against tokenising alone.

    python benchmarks/preparation_at_scale.py MODEL [--rows 100000 1000000] [--processes 2] [--folder FOLDER]

Makes files of short documents (about 75 bytes a row) and for each number of rows prepares their stores on a local Ray,
then tokenises the same rows with `datasets.map`, which keeps only ids: both with as many processes and single-threaded
tokenizers. The start of Ray is not timed; that of its workers and of the pool of `datasets` is, which matters the less,
the more rows there are. Memory is the largest peak of a process that prepares (the driver, a task), resident and
anonymous. FOLDER needs about 500 bytes a row.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
_WORDS = (
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "green",
    "boats",
    "sail",
)
_NUM_HELD_OUT = 1000
_PREPARE = """
import json, sys, time
from pathlib import Path
import ray
from orchestrator.prepare.token_stores import prepare_stores
from workers.config.data import DataConfig, DomainConfig
from workers.config.model import ModelConfig
folder, file, model, processes = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
ray.init("local", num_cpus=processes, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
domain = DomainConfig(train=[file], eval=[folder.parent / "eval.jsonl"])
start = time.monotonic()
stores = prepare_stores({"rows": domain}, DataConfig(max_length=512), ModelConfig(path=model), folder / "cache")
print(json.dumps({"rows": stores["rows"].report.num_rows, "seconds": time.monotonic() - start}))
ray.shutdown()
"""
_MAP = """
import json, sys, time
import datasets, transformers
folder, file, model, processes = *sys.argv[1:4], int(sys.argv[4])
tokenizer = transformers.AutoTokenizer.from_pretrained(model)
rows = datasets.load_dataset("json", data_files=file, split="train", cache_dir=folder)
def tokenize(batch):
    return {"input_ids": tokenizer(batch["text"], add_special_tokens=False)["input_ids"]}
start = time.monotonic()
rows.map(tokenize, batched=True, num_proc=processes, remove_columns=["text"])
print(json.dumps({"rows": len(rows), "seconds": time.monotonic() - start}))
"""


def write_rows(path: Path, num_rows: int) -> Path:
    """Documents of 6 to 22 words after a number."""
    drawn = random.Random(num_rows)
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            text = " ".join(drawn.choices(_WORDS, k=drawn.randint(6, 22)))
            file.write(json.dumps({"text": f"{number} {text}"}) + "\n")
    return path


def call(code: str, *arguments: str) -> dict[str, Any]:
    """What the code prints, and the largest peak in MiB of it or of a task, sampled five times a second."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", code, *arguments]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True)
    peaks = {"driver": (0, 0), "task": (0, 0)}
    while child.poll() is None:
        try:
            parent = psutil.Process(child.pid)
            found = [("driver", parent)] + [("task", each) for each in parent.children(recursive=True)]
            for kind, process in found:
                if kind == "driver" or "_single_threaded" in " ".join(process.cmdline()):
                    memory = process.memory_info()
                    now = (memory.rss >> 20, (memory.rss - memory.shared) >> 20)
                    peaks[kind] = max(peaks[kind][0], now[0]), max(peaks[kind][1], now[1])
        except psutil.Error:
            pass
        time.sleep(0.2)
    output = child.stdout.read() if child.stdout else ""
    if child.returncode:
        raise SystemExit(f"the measurement failed with {child.returncode}: {output}")
    return json.loads(output.splitlines()[-1]) | {"peak_mib": peaks}


def measure(folder: Path, num_rows: int, model: str, processes: int) -> dict[str, Any]:
    """Both ways for one number of rows."""
    file = write_rows(folder / f"{num_rows}.jsonl", num_rows)
    found: dict[str, Any] = {"rows": num_rows}
    for name, code in (("prepare", _PREPARE), ("map", _MAP)):
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            found[name] = call(code, temporary, str(file), model, str(processes))
    file.unlink()
    speeds = {name: found[name]["rows"] / found[name]["seconds"] for name in ("prepare", "map")}
    driver, task = (found["prepare"]["peak_mib"][kind] for kind in ("driver", "task"))
    print(
        f"{num_rows:>10,} rows: {speeds['prepare']:7,.0f} rows/s, datasets.map {speeds['map']:7,.0f} "
        f"(x {speeds['prepare'] / speeds['map']:.2f}); driver {driver[0]} MiB ({driver[1]} anonymous), "
        f"task {task[0]} ({task[1]})",
        flush=True,
    )
    return found


def main() -> None:
    """Measure each number of rows and print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="for the files; default: the folder for temporary files")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        folder = Path(temporary)
        write_rows(folder / "eval.jsonl", _NUM_HELD_OUT)
        results = [measure(folder, rows, str(given.model.resolve()), given.processes) for rows in given.rows]
    tasks = [found["prepare"]["peak_mib"]["task"][0] for found in results]
    print(f"peak of a task: x {tasks[-1] / tasks[0]:.2f} for x {given.rows[-1] / given.rows[0]:,.0f} rows")
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
