"""Losses in chunks against the logits of all loss tokens: peak memory, time and losses of a step's two passes.

    python benchmarks/loss_memory.py [--tokens 4096] [--hidden 896] [--layers 2] [--untied] [--dtype float32]
        [--rounds 1]

A model of Qwen's shape with random weights, a vocabulary of 152,000, and four sequences whose tokens all count, forward
and backward as the engine does it. Each way runs in a process of its own, in turn; of each the median counts. Peak
memory is the kernel's count of resident memory (on a GPU, of allocated memory), above what the process held with its
model loaded, and with the weights. Time on the CPU is that of all its threads, which other work on the machine hardly
changes.
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

import numpy as np

VOCABULARY, SEQUENCES = 152_000, 4
WAYS = ("whole", "chunks")
MIB = 2**20


def build_model(given: argparse.Namespace) -> Any:
    """Qwen2's shape, random weights, trained throughout."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=given.hidden,
        intermediate_size=given.hidden * 5,
        num_hidden_layers=given.layers,
        num_attention_heads=given.hidden // 64,
        num_key_value_heads=given.hidden // 64,
        tie_word_embeddings=not given.untied,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, given.dtype))
    model = Qwen2ForCausalLM(config).to("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_default_dtype(torch.float32)
    return model.train()


def one_pass(tokens: int) -> Any:
    """Sequences of random tokens that all count."""
    from workers.model.forward_pass import ForwardPass

    length = tokens // SEQUENCES + 1
    ids_SL = np.random.default_rng(0).integers(0, VOCABULARY, size=(SEQUENCES, length))
    sequence_N, column_N = np.nonzero(np.ones((SEQUENCES, length - 1)))
    positions_SL = np.tile(np.arange(length), (SEQUENCES, 1))
    target_N = ids_SL[sequence_N, column_N + 1]
    return ForwardPass(ids_SL, positions_SL, sequence_N, column_N, target_N, sequence_N, np.zeros_like(ids_SL))


def step(given: argparse.Namespace) -> None:
    """Forward and backward in one way; prints what it took, and writes the losses."""
    import torch

    from workers.model.packed_forward import PackedForward

    model = build_model(given)
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / MIB
    packed, read = PackedForward(model, model, model.device), one_pass(given.tokens)
    (planned,) = packed.plan([read]) if given.way == "chunks" else [read]
    if planned.in_chunks != (given.way == "chunks"):
        raise SystemExit("so few tokens are not computed in chunks: give more --tokens")
    model.zero_grad()
    peak()
    before, start = held(), now()
    nats_N = packed.nats(planned)
    (nats_N.sum() / given.tokens).backward()
    seconds, highest = now() - start, peak()
    gradient = torch.cat([p.grad.flatten().double().norm()[None] for p in model.parameters()]).norm()
    np.save(given.losses, nats_N.detach().double().cpu().numpy())
    line = {"seconds": seconds, "above_mib": highest - before, "weights_mib": weights, "gradient": float(gradient)}
    print(json.dumps(line))


def now() -> float:
    """Seconds: of the GPU's work, or of the CPU in all threads."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def held() -> float:
    """Memory now, in MiB."""
    import torch

    return torch.cuda.memory_allocated() / MIB if torch.cuda.is_available() else _status("VmRSS:")


def peak() -> float:
    """The most since the last call, in MiB."""
    import torch

    if torch.cuda.is_available():
        highest = torch.cuda.max_memory_allocated() / MIB
        torch.cuda.reset_peak_memory_stats()
    else:
        highest = _status("VmHWM:")
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the mark falls to what is resident now
    return highest


def measure(arguments: list[str], rounds: int) -> None:
    """Both ways in turn, and their ratios."""
    lines: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        files = {way: Path(name) / f"{way}.npy" for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                command = [sys.executable, __file__, *arguments, "--way", way, "--losses", str(files[way])]
                environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONWARNINGS": "ignore"}
                output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
                lines[way].append(json.loads(output.splitlines()[-1]))
        whole_N, chunked_N = (np.load(files[way]) for way in WAYS)
    median = {
        way: {key: statistics.median(line[key] for line in found) for key in found[0]} for way, found in lines.items()
    }
    for way, found in median.items():
        print(
            f"{way:>7}: peak {found['above_mib']:7.0f} MiB above the weights' {found['weights_mib']:.0f}, "
            f"{found['seconds']:6.2f} s, gradient norm {found['gradient']:.8f}"
        )
    whole, chunks = (median[way] for way in WAYS)
    above = chunks["above_mib"] / whole["above_mib"]
    in_all = (chunks["above_mib"] + chunks["weights_mib"]) / (whole["above_mib"] + whole["weights_mib"])
    of_token = np.max(np.abs(chunked_N - whole_N) / whole_N)
    of_mean = abs(chunked_N.mean() - whole_N.mean()) / whole_N.mean()
    print(
        f"chunks / whole: peak {above:.3f} (with the weights {in_all:.3f}), "
        f"time {chunks['seconds'] / whole['seconds']:.3f}; relative difference of a token's loss at most "
        f"{of_token:.1e}, of their mean {of_mean:.1e}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--untied", action="store_true")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--losses", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        step(given)
    else:
        measure(sys.argv[1:], given.rounds)


if __name__ == "__main__":
    main()
