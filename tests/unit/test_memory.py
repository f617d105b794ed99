"""The memory estimate counts what a strategy trains, and the layers that its backward pass goes through."""

from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from orchestrator.config import RunConfig
from orchestrator.memory import MemoryEstimate, estimate_memory

HIDDEN, NEURONS, LAYERS = 32, 64, 8


def estimate(folder: Path, strategy: dict[str, Any], **training: Any) -> MemoryEstimate:
    LlamaConfig(
        vocab_size=100,
        hidden_size=HIDDEN,
        intermediate_size=NEURONS,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
    ).save_pretrained(folder)
    config = {
        "name": "estimated",
        "model": {"path": str(folder)},
        "domains": {"law": {"train": "law.jsonl"}},
        "mixing": {"type": "uniform"},
        "training": {"max_steps": 1, "strategy": strategy, "deepspeed": {"zero_stage": 2}, **training},
        "cluster": {"num_workers": 2},
    }
    return estimate_memory(RunConfig.model_validate(config))


def test_cofitune_counts_its_modules_only(tmp_path: Path) -> None:
    full = estimate(tmp_path, {"type": "full"})
    some = estimate(tmp_path, {"type": "cofitune", "layers": [0.25, 0.5], "mask": "none"})
    assert some.num_parameters == full.num_parameters == full.num_trainable
    assert some.num_trainable == 2 * 2 * HIDDEN * NEURONS
    assert some.gradients == some.num_trainable * 2 / 2
    assert some.optimizer == some.num_trainable * 12 / 2
    assert some.parameters == full.parameters
    masked = estimate(tmp_path, {"type": "cofitune", "layers": [0.25, 0.5]})
    assert masked.optimizer == some.num_trainable * (12 + 13) / 2


def test_no_activations_are_kept_below_the_lowest_layer_that_trains(tmp_path: Path) -> None:
    full = estimate(tmp_path, {"type": "full"})
    lora = estimate(tmp_path, {"type": "lora"})
    upper = estimate(tmp_path, {"type": "cofitune", "layers": [0.75, 1.0]})
    assert full.activations == lora.activations
    assert upper.activations == full.activations / 4
    assert estimate(tmp_path, {"type": "cofitune", "layers": [0, 0.25]}).activations == full.activations
