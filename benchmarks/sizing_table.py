"""The tables of docs/sizing.md: memory of a rank by model, training strategy, number of GPUs and ZeRO stage.

    python benchmarks/sizing_table.py

In each cell the model states by DeepSpeed's own estimators, then the peak that `raymix check` estimates, in GiB.
DeepSpeed estimates for all parameters and for stages 2 and 3. What it leaves out here is added: the gradients that
stage 1 does not shard, and under LoRA the frozen weights.
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config.sweep import SweepConfig
from orchestrator.prepare.memory import GIB, MemoryEstimate, estimate_memory
from orchestrator.prepare.model_shape import ModelShape, read_shape

GPUS, GPUS_A_NODE, STAGES = (1, 8, 16, 64), 8, (1, 2, 3)
STRATEGIES: dict[str, dict[str, Any]] = {"full": {"type": "full"}, "LoRA": {"type": "lora", "rank": 16}}


@dataclass(frozen=True)
class Model:
    """A published model's shape, and the parameters of its largest layer."""

    name: str
    hidden: int
    neurons: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    tied: bool

    def write(self, folder: Path) -> None:
        """Its config.json."""
        from transformers import Qwen2Config

        Qwen2Config(
            hidden_size=self.hidden,
            intermediate_size=self.neurons,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            vocab_size=self.vocabulary,
            tie_word_embeddings=self.tied,
        ).save_pretrained(folder)


MODELS = (
    Model("0.5 B (Qwen2.5-0.5B)", 896, 4864, 24, 14, 2, 151936, True),
    Model("1.5 B (Qwen2.5-1.5B)", 1536, 8960, 28, 12, 2, 151936, True),
    Model("7 B (Qwen2.5-7B)", 3584, 18944, 28, 28, 4, 152064, False),
    Model("14 B (Qwen2.5-14B)", 5120, 13824, 48, 40, 8, 152064, False),
    Model("70 B (Llama-3.1-70B)", 8192, 28672, 80, 64, 8, 128256, False),
)


def run_config(folder: Path, strategy: str, num_gpus: int, stage: int) -> SweepConfig:
    """Rows of 4,096 tokens, one at a time, activations computed again: as large models are fine-tuned."""
    return SweepConfig.model_validate(
        {
            "name": "sizing",
            "model": {"path": str(folder), "dtype": "bfloat16"},
            "domains": {"any": {"train": "any.jsonl"}},
            "data": {"max_length": 4096},
            "mixing": {"type": "uniform"},
            "training": {
                "max_steps": 1,
                "global_batch_size": 128,
                "micro_batch_size": 1,
                "activation_checkpointing": True,
                "strategy": STRATEGIES[strategy],
                "deepspeed": {"zero_stage": stage},
            },
            "cluster": {"num_workers": num_gpus, "gpus_per_worker": 1},
        }
    )


def estimate_by_deepspeed(shape: ModelShape, num_gpus: int, stage: int) -> float:
    """Model states of a rank, in GiB, by DeepSpeed's estimators."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    on_a_node = min(num_gpus, GPUS_A_NODE)
    where = {"num_gpus_per_node": on_a_node, "num_nodes": num_gpus // on_a_node, "cpu_offload": False}
    trained, frozen = shape.num_trainable, 2 * (shape.num_parameters - shape.num_trainable)
    if stage == 3:
        largest = shape.vocab_size * shape.hidden_size
        _, size, _ = estimate_zero3_model_states_mem_needs(trained, largest, cpu_offload_params=False, **where)
        return (size + frozen / num_gpus) / GIB
    _, size = estimate_zero2_model_states_mem_needs(trained, **where)
    unsharded = 2 * trained * (1 - 1 / num_gpus) if stage == 1 else 0
    return (size + frozen + unsharded) / GIB


def rows() -> Iterator[tuple[str, str, int, list[tuple[float, MemoryEstimate]]]]:
    """Model, strategy, GPUs, and for each stage DeepSpeed's figure and raymix's."""
    for model in MODELS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model.write(folder)
            for strategy in STRATEGIES:
                shape = read_shape(run_config(folder, strategy, 1, 1))
                for num_gpus in GPUS:
                    cells = []
                    for stage in STAGES:
                        ours = estimate_memory(shape, run_config(folder, strategy, num_gpus, stage))
                        cells.append((estimate_by_deepspeed(shape, num_gpus, stage), ours))
                    yield model.name, strategy, num_gpus, cells


def table() -> str:
    """In Markdown."""
    lines = ["| model | trained | GPUs | ZeRO-1 | ZeRO-2 | ZeRO-3 |", "|---|---|---|---|---|---|"]
    for model, strategy, num_gpus, cells in rows():
        shown = " | ".join(_cell(states, ours.total_gib) for states, ours in cells)
        lines.append(f"| {model} | {strategy} | {num_gpus} | {shown} |")
    return "\n".join(lines) + "\n"


def _cell(states: float, peak: float) -> str:
    fits = peak <= 0.9 * 80e9 / GIB
    return f"{states:.1f} / {'**' if fits else ''}{peak:.1f}{'**' if fits else ''}"


if __name__ == "__main__":
    sys.stdout.write(table())
