"""End to end: tokens per second of `raymix run`, evaluation excluded, against a bare DeepSpeed loop over the same rows.

    python benchmarks/end_to_end.py [--model FOLDER] [--steps 40] [--rounds 3] [--json FILE]

Two workers, ZeRO-2, float32, generated text. The bare loop is what one would write by hand: the same model, optimizer
and rows (read from the token stores in the order of samples.jsonl, before the clock starts), loss from the whole
logits, no controller, no journal, no per-domain loss. Both run in turn; of each the median step counts, then the median
of the ratios.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

NUM_WORKERS, ROWS, LENGTH, NUM_WARM_UP = 2, 16, 256, 5


def write_run(folder: Path, model: Path, num_steps: int) -> Path:
    """A run over three domains of generated text whose evaluation and checkpoints come at its end only."""
    domains = {}
    for number, name in enumerate(("red", "green", "blue")):
        path = folder / f"{name}.jsonl"
        rows = ({"text": " ".join(f"{name} {i * (7 + number) % 997}" for i in range(r, r + 60))} for r in range(800))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        domains[name] = {"train": str(path)}
    config: dict[str, Any] = {
        "name": "run",
        "output_dir": str(folder),
        "model": {"path": str(model), "dtype": "float32"},
        "domains": domains,
        "data": {"max_length": LENGTH, "too_long": "split", "log_samples": True},
        "mixing": {"type": "uniform"},
        "training": {
            "max_steps": num_steps,
            "global_batch_size": ROWS,
            "micro_batch_size": ROWS // NUM_WORKERS,
            "learning_rate": 1e-4,
            "checkpoint_every": num_steps,
        },
        "evaluation": {"every": num_steps, "max_rows": 8, "best": None},
        "cluster": {"num_workers": NUM_WORKERS},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def measure_raymix(config: Path) -> float:
    """Tokens per second of a run's median step, the first ones left out."""
    subprocess.run(
        [sys.executable, "-m", "orchestrator.cli.main", "run", str(config)], check=True, stdout=subprocess.DEVNULL
    )
    return statistics.median(step["num_tokens"] / step["seconds"] for step in read_metrics(config.parent / "run"))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of the steps after the first ones."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][NUM_WARM_UP:]


def measure_bare(run: Path, model: Path) -> float:
    """Tokens per second of the bare loop's median step, over the rows that the run drew."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--bare", str(run), "--model", str(model)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(NUM_WORKERS)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(NUM_WORKERS)
    ]
    outputs = [process.communicate()[0] for process in processes]
    return float(outputs[0].splitlines()[-1])


def run_bare(run: Path, model_folder: Path) -> None:
    """The bare loop, on one rank."""
    import deepspeed
    import numpy as np
    import torch
    import torch.nn.functional as F
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder
    from transformers import AutoModelForCausalLM

    from workers.data.store import TokenStore

    deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model.config.use_cache = False
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    settings = {
        "train_micro_batch_size_per_gpu": ROWS // NUM_WORKERS,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 2},
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    stores = {json.loads(m.read_text())["domain"]: TokenStore.open(m.parent) for m in _train_manifests(run)}
    drawn: dict[int, list[tuple[str, int]]] = {}
    for line in map(json.loads, (run / "samples.jsonl").read_text().splitlines()):
        if line["rank"] == rank:
            drawn.setdefault(line["step"], []).extend((line["domain"], row) for row in line["rows"])
    batches = [
        [
            torch.from_numpy(np.stack([getattr(stores[name], part)[row] for name, row in drawn[step]]).astype(np.int64))
            for part in ("input_ids", "position_ids", "loss_mask")
        ]
        for step in sorted(drawn)
    ]
    seconds = []
    for input_ids, position_ids, loss_mask in batches:
        began = time.perf_counter()
        logits = engine(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
        labels = torch.where(loss_mask[:, 1:].bool(), input_ids[:, 1:], -100)
        engine.backward(F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten()))
        engine.step()
        seconds.append(time.perf_counter() - began)
    tokens = [step["num_tokens"] for step in read_metrics(run)]
    print(statistics.median(t / s for t, s in zip(tokens, seconds[NUM_WARM_UP:], strict=True)), flush=True)


def _train_manifests(run: Path) -> list[Path]:
    return list((run.parent / "token-stores").glob("*/train/manifest.json"))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.bare:
        run_bare(given.bare, given.model)
        return
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        model = given.model
        if model is None:
            from orchestrator.cli.demo.driver import write_demo

            model = write_demo(Path(name) / "demo").parent / "base"
        for number in range(given.rounds):
            folder = Path(name) / str(number)
            folder.mkdir()
            ours = measure_raymix(write_run(folder, model, given.steps))
            bare = measure_bare(folder / "run", model)
            rounds.append({"raymix": ours, "bare": bare, "ratio": ours / bare})
            print(f"raymix {ours:8,.0f} tokens/s   bare {bare:8,.0f} tokens/s   ratio {ours / bare:.3f}", flush=True)
    print(f"median ratio {statistics.median(r['ratio'] for r in rounds):.3f}")
    if given.json:
        given.json.write_text(json.dumps(rounds, indent=1))


if __name__ == "__main__":
    main()
