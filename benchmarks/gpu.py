"""The GPU acceptance run: does raymix compute on one GPU what it computes on the CPU, and how fast?

    python benchmarks/gpu.py [--peak-tflops N] [--json FILE] [--folder FOLDER]

Without a GPU it says so and does nothing. Each part runs in a process of its own, so that one that fails takes no other
with it, and all of them end within ten minutes:

    losses     four ZeRO stages in bfloat16 against plain torch in float32
    kernels    the proof that packed examples stay apart, and losses, with each attention kernel that is installed, and
               with liger-kernel
    qlora      weights in 4 bits, and training on top of them
    training   Qwen2.5-0.5B's shape with random weights: tokens/s, model FLOPs utilisation, peak memory against the
               estimate of `raymix check`, the stall of a checkpoint, and an engine that resumes from it
    run        `raymix run` on Ray, stopped and resumed, against an undisturbed run

The exit code is 1 if a line of the table is not as expected. `--json` also writes the table to a file; `--folder` is
where models and checkpoints go meanwhile (8 GB).
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import gpu_parts
from benchmarks.gpu_model import QWEN_HALF_BILLION, SMALL
from benchmarks.gpu_parts import LOSS_TOLERANCE_NATS, Row
from tests.runs import raymix, read_lines, start, wait_for, write_run

LIMIT_SECONDS = 600
_PARTS = ("losses", "kernels", "qlora", "training", "run")


def measure_run(folder: Path, num_gpus: int) -> list[Row]:
    """A run of 30 steps that is stopped after ten and resumed, against one that is not."""
    settings = {"model__dtype": "bfloat16", "cluster__num_workers": 1, "cluster__gpus_per_worker": num_gpus}
    configs = {kind: write_run(folder / kind, **settings) for kind in ("undisturbed", "stopped")}
    runs = {kind: folder / kind / "runs" / "small" for kind in configs}
    process, metrics = start("run", configs["stopped"]), runs["stopped"] / "metrics.jsonl"
    wait_for(process, lambda: metrics.exists() and len(read_lines(metrics)) >= 10)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=120)
    for config in configs.values():
        done = raymix("run", config)
        if done.returncode:
            return [Row("raymix run", f"exit code {done.returncode}: {done.stderr.strip()[-300:]}", "0", False)]
    expected, found = (
        {line["step"]: line["loss_nats"] for line in read_lines(runs[kind] / "metrics.jsonl")} for kind in configs
    )
    drawn, drawn_again = (
        {(s["step"], s["domain"], row) for s in read_lines(runs[kind] / "samples.jsonl") for row in s["rows"]}
        for kind in configs
    )
    worst = max((abs(found.get(step, float("inf")) - loss) for step, loss in expected.items()), default=float("inf"))
    num_other = len(drawn ^ drawn_again)
    return [
        Row("raymix run, stopped and resumed", f"{num_other} of {len(drawn)} samples differ", "0", num_other == 0),
        Row("its losses", f"{worst:.4f} nats off", f"<= {LOSS_TOLERANCE_NATS} nats", worst <= LOSS_TOLERANCE_NATS),
    ]


def run_part(name: str, folder: Path, peak_tflops: float | None) -> list[Row]:
    """One part, in this process."""
    if name == "run":
        return measure_run(folder, num_gpus=1)
    _join_group()
    measures: dict[str, Callable[[], list[Row]]] = {
        "losses": lambda: gpu_parts.measure_losses(SMALL, folder),
        "kernels": lambda: gpu_parts.measure_kernels(SMALL, folder),
        "qlora": lambda: gpu_parts.measure_qlora(SMALL, folder),
        "training": lambda: gpu_parts.measure_training(QWEN_HALF_BILLION, folder, peak_tflops),
    }
    return measures[name]()


def _join_group() -> None:
    import torch

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ.update(address)
    torch.distributed.init_process_group("nccl")


def run_all(folder: Path, given: Sequence[str]) -> list[Row]:
    """Every part in a process of its own, until the time is up."""
    until, rows = time.monotonic() + LIMIT_SECONDS, []
    for name in _PARTS:
        (folder / name).mkdir(parents=True)
        command = [sys.executable, __file__, *given, "--part", name, "--folder", str(folder / name)]
        left = until - time.monotonic()
        try:
            part = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=max(left, 1), check=False)
        except subprocess.TimeoutExpired:
            rows.append(Row(name, f"not done after {left:.0f} s", f"all in {LIMIT_SECONDS} s", False))
            continue
        lines = part.stdout.splitlines()
        if part.returncode or not lines:
            rows.append(Row(name, f"failed with exit code {part.returncode}, see above", "0", False))
        else:
            rows += [Row(**row) for row in json.loads(lines[-1])]
    return rows


def render(rows: Sequence[Row]) -> str:
    """The table."""
    said = {True: "yes", False: "NO", None: "-"}
    cells = [("", "measured", "expected", "as expected")]
    cells += [(row.what, row.measured, row.expected, said[row.is_right]) for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def why_not_here() -> str | None:
    """Why nothing can be measured on this machine, or None."""
    import torch

    if torch.cuda.is_available():
        return None
    return f"torch {torch.__version__} finds no GPU here (torch.cuda.is_available() is False); nothing was measured"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peak-tflops", type=float, help="of the GPU, dense bfloat16, where it is not known by name")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--part", choices=_PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.part:
        print(json.dumps([asdict(row) for row in run_part(given.part, given.folder, given.peak_tflops)]), flush=True)
        os._exit(0)  # DeepSpeed and the process group wait for each other at exit
    if reason := why_not_here():
        print(f"skipped: {reason}")
        return 0
    with tempfile.TemporaryDirectory(prefix="raymix-gpu-", dir=given.folder) as name:
        rows = run_all(Path(name), ["--peak-tflops", str(given.peak_tflops)] if given.peak_tflops else [])
    print(render(rows))
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 0 if all(row.is_right is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
