"""Checkpoints of a large model on CPU ranks: who writes how much, what it costs, and whether other sizes go on exactly.

    python benchmarks/checkpoints.py [--layers 20] [--stage 3] [--rounds 3]

A Llama of 300 M parameters with random weights on four gloo ranks, bfloat16, in small buckets. Each round writes two
checkpoints. Of the first, while nothing is trained: the bytes of each rank, its peak memory above that before, and the
time from `begin` until the last rank has written and flushed its files. The very first also allocates its host memory;
the others reuse it. Of the second, with a step of training beside it: for how long training waits (in `begin`, before
the update and for the commit), and the whole step against one without a checkpoint, as all share two cores. Last,
a small model and a small run go on from four ranks with two and then three: the loaded masters and moments are compared
bit by bit with the saved ones, and the samples with those of an undisturbed run.
"""

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.integration import zero_cases, zero_processes
from tests.integration.zero_processes import ZeroProcesses
from tests.runs import write_run

NUM_RANKS = 4
MIB = 2**20
SMALL_BUCKETS = {
    "reduce_bucket_size": 2**23,
    "sub_group_size": 2**24,
    "stage3_prefetch_bucket_size": 2**20,
    "stage3_max_live_parameters": 2**24,
    "stage3_max_reuse_distance": 2**24,
}
"""So that four ranks fit into 24 GiB beside each other."""


def write_model(folder: Path, num_layers: int) -> Path:
    """A Llama with hidden size 1,024, tied embeddings, a small vocabulary and random weights: 14.7 M a layer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=zero_cases.VOCABULARY,
        hidden_size=1024,
        intermediate_size=3424,
        num_hidden_layers=num_layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """MiB by which this process's memory exceeds that at the start, at its highest so far."""

    def resident() -> int:
        return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024

    before, highest, is_over = resident(), [0], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.01):
            highest[0] = max(highest[0], resident() - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: max(highest[0], resident() - before) / MIB
    finally:
        is_over.set()
        watcher.join()


def measure_large(case: zero_cases.Case, folder: Path, num_rounds: int) -> dict[str, Any]:
    """On every rank: rounds of a step alone, a checkpoint alone, and both together."""
    from workers.engine.checkpoint_writer import CheckpointWriter

    engine = zero_cases.build_engine(case)
    num_parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    writer, rounds = CheckpointWriter(engine, folder, keep=1), []
    _step(engine, Stopwatch())
    for number in range(1, num_rounds + 1):
        step, alone, beside, waits = Stopwatch(), Stopwatch(), Stopwatch(), Stopwatch()
        _step(engine, step)
        with peak_memory() as peak:
            with alone:
                writer.begin(2 * number, {})
                _until_written(writer)
            writer.settle(wait=True)
            extra_mib = peak()
        with waits:
            writer.begin(2 * number + 1, {})
        _step(engine, beside, waits)
        _until_written(writer)
        with waits:
            writer.settle(wait=False)  # as training does
        seconds = {"step": step, "write": alone, "beside": beside, "waits": waits}
        rounds.append({name: watch.seconds for name, watch in seconds.items()} | {"extra_mib": extra_mib})
    path = folder / f"step-{2 * num_rounds + 1:08d}"
    num_bytes = sum(file.stat().st_size for file in path.glob(f"*-{engine.rank:05d}.safetensors"))
    engine.destroy()
    return {"parameters": num_parameters, "bytes": num_bytes, "rounds": rounds}


class Stopwatch:
    """The seconds of the blocks under it, in all; each begins on all ranks together."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        dist.barrier()
        self._began = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.seconds += time.perf_counter() - self._began


def _step(engine: Any, whole: Stopwatch, waits: Stopwatch | None = None) -> None:
    """A step of training; `waits` also gets the time that it waits before the update."""
    batch = zero_cases.global_batch(1, engine.rank, engine.world_size)
    with whole:
        engine.forward_backward(batch, zero_cases.NUM_DOMAINS)
        with waits or nullcontext():
            engine.before_update()
        engine.step(1e-5)
        dist.barrier()


def _until_written(writer: Any) -> None:
    while not writer._under_way.written.done():
        time.sleep(0.005)
    dist.barrier()


def print_large(ranks: list[dict[str, Any]]) -> None:
    sizes = [rank["bytes"] for rank in ranks]
    rounds = list(zip(*(rank["rounds"] for rank in ranks), strict=True))
    print(f"{ranks[0]['parameters'] / 1e6:.0f} M parameters, {len(ranks)} ranks, {sum(sizes) / MIB:,.0f} MiB")
    print(f"bytes: largest rank {max(sizes) / min(sizes):.4f}x of the smallest")
    extra = [rank["extra_mib"] for rank in rounds[0]]
    print(f"peak extra memory in MiB by rank: {[round(e) for e in extra]}; rank 0 {extra[0] / max(extra[1:]):.3f}x")
    again = [max(rank["extra_mib"] for rank in of_rank) for of_rank in zip(*rounds[1:], strict=True)]
    print(f"  once the host memory is allocated: {[round(e) for e in again]}")
    longest = {
        key: [max(rank[key] for rank in each) for each in rounds] for key in ("write", "waits", "step", "beside")
    }
    print("seconds of each round: " + ", ".join(f"{key} {[round(s, 2) for s in longest[key]]}" for key in longest))
    shares = [waits / write for waits, write in zip(longest["waits"], longest["write"], strict=True)]
    print(f"training waits {100 * statistics.median(shares):.1f} % of the time that writing alone takes (median)")
    ratio = statistics.median(b / s for b, s in zip(longest["beside"], longest["step"], strict=True))
    print(f"a step beside a checkpoint takes {ratio:.2f}x of one alone", flush=True)


def train_part(config_path: Path, stop_before: int | None) -> int:
    """Train the run of a configuration on this group's ranks up to a step; the steps done."""
    from orchestrator.config.load import load_config
    from orchestrator.controller.journal import DurableController
    from orchestrator.mixing import Measured, build_mixing_algorithm, resolve_mixing
    from orchestrator.prepare.token_stores import prepare_stores
    from orchestrator.training.plan import build_plan, domain_sizes
    from workers.training.loop import train

    config = load_config(config_path)
    if dist.get_rank() == 0:
        prepare_stores(config.domains, config.data, config.model, config.cache_dir, lambda *progress: None)
    dist.barrier()
    stores = prepare_stores(config.domains, config.data, config.model, config.cache_dir, lambda *progress: None)
    plan = build_plan(config, "measured", stores)
    plan.folder.mkdir(parents=True, exist_ok=True)
    controller: Any = None
    if dist.get_rank() == 0:
        mixing = resolve_mixing(config.mixing, Measured(), config.trained_domains)
        controller = DurableController(plan.folder, plan.run_id, build_mixing_algorithm(mixing, domain_sizes(stores)))
        pull = controller.pull
        controller.pull = lambda step: None if step == stop_before else pull(step)
    train(plan, controller)
    return sum(1 for _ in (plan.folder / "metrics.jsonl").open())


def samples(folder: Path) -> set[tuple[int, str, int]]:
    """(step, domain, row) of a run, by whichever rank."""
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return {(line["step"], line["domain"], row) for line in lines for row in line["rows"]}


def digest(result: dict[str, Any]) -> str:
    """Of all masters and moments as DeepSpeed gathers them, and of Adam's step."""
    found = hashlib.sha256(str(result["adam_step"]).encode())
    for name, tensors in sorted(result["masters"].items()):
        found.update(name.encode())
        for tensor in tensors:
            found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def resize_state(group: ZeroProcesses, stage: int, folder: Path, step: int) -> tuple[str, str]:
    """Load the checkpoint of `step`, if there is one, and train one step further (at first four) with a checkpoint; the
    digests of the loaded state and of the saved one."""
    training = zero_cases.training_of(stage, global_batch_size=36, micro_batch_size=3)
    load = folder / f"step-{step:08d}" if step else None
    last_step = step + 1 if step else 4
    loaded = zero_cases.Case(zero_cases.tiny_model(), training, last_step=0, load=load)
    trained = zero_cases.Case(loaded.model, training, "float32", last_step, step + 1, load, {last_step: folder})
    found = digest(group.run(zero_cases.train, loaded)[0]) if load else ""
    return found, digest(group.run(zero_cases.train, trained)[0])


def main() -> None:
    zero_processes._TIMEOUT_SECONDS = 1800
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--stage", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raymix-checkpoints-") as name:
        folder, states, sizes = Path(name), [], (NUM_RANKS, 2, 3)
        settings = {"training__global_batch_size": 12, "training__micro_batch_size": 1, "training__max_steps": 12}
        settings |= {"training__checkpoint_every": 4, "training__deepspeed__zero_stage": asked.stage}
        runs = {kind: write_run(folder / kind, **settings) for kind in ("undisturbed", "resized")}
        for size, step, stop in zip(sizes, (0, 4, 5), (5, 9, None), strict=True):
            group = ZeroProcesses(size)
            if size == NUM_RANKS:
                settings_file = folder / "deepspeed.json"
                settings_file.write_text(json.dumps({"zero_optimization": SMALL_BUCKETS | {"stage": asked.stage}}))
                training = zero_cases.TRAINING | {"deepspeed": str(settings_file)}
                large = zero_cases.Case(write_model(folder / "large", asked.layers), training)
                print_large(group.run(measure_large, large, folder / "checkpoints", asked.rounds))
                group.run(train_part, runs["undisturbed"], None)
            states.append(resize_state(group, asked.stage, folder / "small", step))
            group.run(train_part, runs["resized"], stop)
            group.close()
        num_equal = sum(later[0] == earlier[1] for earlier, later in pairwise(states))
        print(f"{sizes} ranks: {num_equal} of {len(states) - 1} loaded states equal the saved ones bit by bit")
        expected, found = (samples(folder / kind / "runs" / "small") for kind in runs)
        print(f"{len(expected ^ found)} of {len(expected)} samples differ")


if __name__ == "__main__":
    main()
