"""Memory of a rank: what `raymix check` estimates, against what the real engine takes.

    python benchmarks/sizing.py DATA MODEL... [--large] [--json FILE]

Trains each MODEL on two ranks at ZeRO 0 to 3, in bfloat16 and on real rows as raymix does it, and evaluates once.
DATA has a folder for each domain, of whose eval.jsonl.gz the rows are; `--large` adds a model of 55 M random weights
with the first one's tokenizer. Measured is the peak of a rank's resident memory, as the kernel counts it, above what
the process held before its engine was built; on GPUs the peak of allocated device memory. malloc maps every block
above 64 KiB by itself, so that what torch gives back is gone from the count.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

NUM_RANKS, STAGES, NUM_STEPS = 2, (0, 1, 2, 3), 2
MIB = 2**20


def build_config(output: Path, data: Path, model: Path, stage: int, on_gpu: bool) -> Any:
    """A run over all domains of DATA, in rows of as many tokens as the model takes, at most 512."""
    from orchestrator.config.run import RunConfig

    context = json.loads((model / "config.json").read_text())["max_position_embeddings"]
    return RunConfig.model_validate(
        {
            "name": "sizing",
            "output_dir": str(output),
            "model": {"path": str(model), "dtype": "bfloat16"},
            "domains": {
                folder.name: {"train": str(folder / "eval.jsonl.gz"), "eval_fraction": 0.1}
                for folder in sorted(data.iterdir())
                if (folder / "eval.jsonl.gz").exists()
            },
            "data": {"max_length": min(context, 512), "too_long": "truncate"},
            "mixing": {"type": "uniform"},
            "training": {
                "max_steps": NUM_STEPS,
                "global_batch_size": 4 * NUM_RANKS,
                "micro_batch_size": 2,
                "deepspeed": {"zero_stage": stage},
            },
            "cluster": {"num_workers": NUM_RANKS, "gpus_per_worker": 1 if on_gpu else 0},
        }
    )


def measure(data: Path, models: list[Path], small: Path, output: Path) -> list[dict[str, Any]]:
    """A line for each model and stage: predicted and measured peak of a rank, in MiB."""
    import torch

    from orchestrator.prepare.memory import estimate_memory
    from orchestrator.prepare.model_shape import read_shape
    from orchestrator.prepare.token_stores import prepare_stores, training_stores
    from orchestrator.training.plan import build_plan

    on_gpu = torch.cuda.is_available()
    cases, lines = [], []
    for model in models:
        for stage in STAGES:
            config = build_config(output, data, model, stage, on_gpu)
            stores = prepare_stores(config.domains, config.data, config.model, config.cache_dir)
            fractions = [store.num_loss_tokens / store.num_tokens for store in training_stores(stores).values()]
            estimate = estimate_memory(read_shape(config), config, max(fractions))
            cases.append(build_plan(config, "sizing", stores).model_dump(mode="json"))
            lines.append(
                {
                    "model": model.name,
                    "parameters": estimate.num_parameters,
                    "zero_stage": stage,
                    "predicted_mib": estimate.total / MIB,
                    "moment": estimate.moment,
                    "parts_mib": {name: size / MIB for name, size in estimate.parts.items()},
                }
            )
    for line, peaks in zip(lines, _train_on_all_ranks(cases, small), strict=True):
        peak = max(max(rank.values()) for rank in peaks)
        line |= {"measured_mib": peak, "ratio": line["predicted_mib"] / peak, "ranks_mib": peaks}
    return lines


def _train_on_all_ranks(cases: list[dict[str, Any]], small: Path) -> list[list[dict[str, float]]]:
    """Of each case the peaks of every rank, in MiB, by the part of training: one process a rank trains all cases."""
    spec = small.parent / "cases.json"
    spec.write_text(json.dumps({"cases": cases, "small": str(small)}))
    environment = os.environ | {
        "WORLD_SIZE": str(NUM_RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29617",
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "PYTHONWARNINGS": "ignore",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, "--rank", str(spec)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(NUM_RANKS)
    ]
    outputs = [rank.communicate()[0] for rank in ranks]
    return [list(of_ranks) for of_ranks in zip(*(json.loads(text.splitlines()[-1]) for text in outputs), strict=True)]


def run_rank(spec: dict[str, Any]) -> None:
    """Train every case; print the peaks."""
    import torch

    from workers.training.plan import TrainingPlan

    on_gpu = torch.cuda.is_available()
    torch.set_num_threads(1)
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    plans = [TrainingPlan.model_validate(case) for case in spec["cases"]]
    results = []
    for plan in plans:
        # What is loaded and set up once in a process is there before the measurement begins.
        small = plan.model.model_copy(update={"path": spec["small"]})
        train(plan.model_copy(update={"model": small}), Peak(on_gpu))
        results.append(train(plan, Peak(on_gpu)))
        torch.distributed.barrier()
    print(json.dumps(results), flush=True)
    os._exit(0)  # DeepSpeed and gloo wait for each other at exit


def train(plan: Any, peak: "Peak") -> dict[str, float]:
    """A few steps and an evaluation with an engine of its own."""
    from workers.engine.engine import Engine

    batches, num_domains = _read_batches(plan)
    peak.start()
    engine = Engine.build(plan.model, plan.training, plan.seed)
    peaks = {"building": peak.read()}
    for batch in batches:
        engine.forward_backward(batch, num_domains)
        peaks["passes"] = max(peak.read(), peaks.get("passes", 0.0))
        engine.step(1e-5)
        peaks["step"] = max(peak.read(), peaks.get("step", 0.0))
    engine.forward(batches[0], num_domains)
    peaks["evaluation"] = peak.read()
    engine.destroy()
    return peaks


def _read_batches(plan: Any) -> tuple[list[Any], int]:
    import torch

    from workers.contracts import DomainWeights
    from workers.data.batches import BatchLoader

    stores, _ = plan.open_stores()
    rank = torch.distributed.get_rank()
    loader = BatchLoader(list(stores.values()), plan.build_schedule(stores), rank, NUM_RANKS, NUM_STEPS)
    shares = dict.fromkeys(stores, 1 / len(stores))
    loader.announce(DomainWeights(version=0, effective_step=1, shares=shares, reason="initial", by="uniform"))
    batches = [loader.get(step) for step in range(1, NUM_STEPS + 1)]
    arrays = ("input_ids_BL", "position_ids_BL", "loss_mask_BL")
    kept = [replace(batch, **{name: getattr(batch, name).copy() for name in arrays}) for batch in batches]
    loader.close()
    return kept, len(stores)


class Peak:
    """The most memory since the last reading, above what there was at the start, in MiB."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self.base = 0.0

    def start(self) -> None:
        """Count from here."""
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        self.base = 0.0
        self.read()
        self.base = self.read()

    def read(self) -> float:
        """The peak, which begins anew."""
        if self.on_gpu:
            import torch

            peak = torch.cuda.max_memory_allocated() / MIB
            torch.cuda.reset_peak_memory_stats()
        else:
            lines = Path("/proc/self/status").read_text().splitlines()
            peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): the mark falls to what is resident now
        return peak - self.base


def write_llama(like: Path, folder: Path, num_heads: int, **sizes: int) -> Path:
    """A model of random weights, with the tokenizer of another."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    base = AutoConfig.from_pretrained(like)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=base.vocab_size,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads // 2,
        max_position_embeddings=base.max_position_embeddings,
        tie_word_embeddings=True,
        **sizes,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(like).save_pretrained(folder)
    return folder


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--large", action="store_true", help="also a model of 55 M random weights")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if not Path("/dev/nvidiactl").exists():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it guesses, and says so
    with tempfile.TemporaryDirectory() as name:
        output, models = Path(name), list(given.models)
        small = write_llama(
            models[0], output / "small", num_heads=4, hidden_size=32, intermediate_size=64, num_hidden_layers=2
        )
        if given.large:
            sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8}
            models.append(write_llama(models[0], output / "55M-random", num_heads=12, **sizes))
        lines = measure(given.data, models, small, output)
    for line in lines:
        print(
            f"{line['model']:>12} {line['parameters']:>12,} parameters  ZeRO-{line['zero_stage']}  "
            f"predicted {line['predicted_mib']:7.1f} MiB ({line['moment']})  measured {line['measured_mib']:7.1f} MiB  "
            f"ratio {line['ratio']:.2f}"
        )
    if given.json:
        given.json.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--rank":
        run_rank(json.loads(Path(sys.argv[2]).read_text()))
    else:
        main()
