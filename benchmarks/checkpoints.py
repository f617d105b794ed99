"""Checkpoints of a large model on CPU ranks: who writes how much, what it costs, and whether other sizes go on exactly.

    python benchmarks/checkpoints.py [--layers 20] [--stage 3] [--rounds 3]

A Llama of 300 M parameters with random weights on four gloo ranks, bfloat16, in small buckets. Of each checkpoint: the
bytes of each rank, its peak memory above that before, and for how long training waits (`begin`, and the commit) against
the time from the end of `begin` until the last rank has written and flushed its files. The first checkpoint also
allocates its host memory; the others reuse it. Then a step of training, alone and while a checkpoint is written. Last,
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
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

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
"""So that four ranks fit into 16 GiB beside each other."""


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
    """On every rank: a step, checkpoints one after the other, then one with a step beside it."""
    import torch.distributed as dist

    from workers.engine.checkpoint_writer import CheckpointWriter

    engine = zero_cases.build_engine(case)
    num_parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    batch = zero_cases.global_batch(1, engine.rank, engine.world_size)

    def step() -> float:
        dist.barrier()
        began = time.perf_counter()
        engine.forward_backward(batch, zero_cases.NUM_DOMAINS)
        engine.step(1e-5)
        dist.barrier()
        return time.perf_counter() - began

    step()
    alone = step()
    writer, rounds = CheckpointWriter(engine, folder, keep=1), []
    for number in range(1, num_rounds + 1):
        rounds.append(_one_checkpoint(writer, number))
    writer.begin(num_rounds + 1, {})
    beside = step()
    writer.settle(wait=True)
    path = folder / f"step-{num_rounds + 1:08d}"
    num_bytes = sum(file.stat().st_size for file in path.glob(f"*-{engine.rank:05d}.safetensors"))
    engine.destroy()
    return {"parameters": num_parameters, "bytes": num_bytes, "rounds": rounds, "alone": alone, "beside": beside}


def _one_checkpoint(writer: Any, number: int) -> dict[str, float]:
    import torch.distributed as dist

    with peak_memory() as peak:
        dist.barrier()
        began = time.perf_counter()
        writer.begin(number, {})
        copied = time.perf_counter()
        while not writer._under_way.written.done():
            time.sleep(0.005)
        dist.barrier()
        written = time.perf_counter()
        writer.settle(wait=False)  # as training does
        committed = time.perf_counter()
        return {
            "copy": copied - began,
            "write": written - copied,
            "commit": committed - written,
            "extra_mib": peak(),
        }


def print_large(ranks: list[dict[str, Any]]) -> None:
    sizes = [rank["bytes"] for rank in ranks]
    first, *later = zip(*(rank["rounds"] for rank in ranks), strict=True)
    print(f"{ranks[0]['parameters'] / 1e6:.0f} M parameters, {len(ranks)} ranks, {sum(sizes) / MIB:,.0f} MiB")
    print(f"bytes: largest rank {max(sizes) / min(sizes):.4f}x of the smallest")
    extra = [rank["extra_mib"] for rank in first]
    print(f"peak extra memory in MiB by rank: {[round(e) for e in extra]}; rank 0 {extra[0] / max(extra[1:]):.3f}x")
    again = [max(rank["extra_mib"] for rank in of_rank) for of_rank in zip(*later, strict=True)]
    print(f"  once the host memory is allocated: {[round(e) for e in again]}")
    for name, rounds in (("first", [first]), ("later, median", later)):
        stalls = [max(rank["copy"] for rank in each) + max(rank["commit"] for rank in each) for each in rounds]
        writes = [max(rank["write"] for rank in each) for each in rounds]
        ratio = statistics.median(stall / write for stall, write in zip(stalls, writes, strict=True))
        print(f"{name}: copy {[round(max(r['copy'] for r in each), 2) for each in rounds]} s, commit", end=" ")
        print(f"{[round(max(r['commit'] for r in each), 2) for each in rounds]} s")
        waits, takes = statistics.median(stalls), statistics.median(writes)
        print(f"{name}: training waits {waits:.2f} s, writing takes {takes:.2f} s: {100 * ratio:.1f} %", flush=True)
    alone, beside = (max(rank[key] for rank in ranks) for key in ("alone", "beside"))
    print(f"a step: {alone:.2f} s alone, {beside:.2f} s beside a checkpoint")


def train_part(config_path: Path, stop_before: int | None) -> int:
    """Train the run of a configuration on this group's ranks up to a step; the steps done."""
    import torch.distributed as dist

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
                large = zero_cases.Case(
                    write_model(folder / "large", asked.layers), zero_cases.training_of(asked.stage)
                )
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
