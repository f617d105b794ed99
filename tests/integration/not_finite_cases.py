"""A training in this process, of a model or with evaluations that are not finite."""

import os
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from workers.validation.loss_statistics import ExampleLosses


def train(config_path: Path, planted: dict[int, dict[str, float]]) -> str:
    """Train to the end, with these losses at these evaluations in place of what was measured; the error, if any.

    Args:
        config_path: the run's file.
        planted: number of the evaluation, from 0 on -> domain -> loss of its first example in nats.
    """
    from orchestrator.config.load import load_config
    from orchestrator.mixing import Measured, resolve_mixing
    from orchestrator.prepare.token_stores import prepare_stores
    from orchestrator.runs.summary import write_summary
    from orchestrator.training.driver import train_in_process
    from orchestrator.training.plan import build_plan, domain_sizes
    from workers.training.failures import NonFiniteLossError
    from workers.validation.loss_meter import evaluate as evaluate_all

    os.chdir(config_path.parent)
    config = load_config(config_path)
    stores = prepare_stores(config.domains, config.data, config.model, config.cache_dir, lambda *progress: None)
    plan = build_plan(config, "planted", stores)
    plan.folder.mkdir(parents=True, exist_ok=True)
    number = -1

    def evaluate(*arguments: Any) -> dict[str, ExampleLosses]:
        nonlocal number
        number += 1
        losses = evaluate_all(*arguments)
        for name, value in planted.get(number, {}).items():
            losses[name].loss_sum_nats_E[0] = value
        return losses

    with patch("workers.validation.loss_meter.evaluate", evaluate):
        try:
            train_in_process(
                plan, resolve_mixing(config.mixing, Measured(), config.trained_domains), domain_sizes(stores)
            )
        except NonFiniteLossError as error:
            return str(error)
    write_summary(plan.folder, dict.fromkeys(config.domains, 0))
    return ""


def train_with_a_slow_disk(config_path: Path) -> str:
    """Train where every file of a checkpoint takes half a second; the error, if any."""
    from safetensors.torch import save_file

    def write_slowly(*args: Any) -> None:
        time.sleep(0.5)
        save_file(*args)

    with patch("workers.engine.checkpoint_writer.save_file", write_slowly):
        return train(config_path, {})


def plant_overflow(model: Path) -> None:
    """Make weights so large that losses overflow, though each of them is finite."""
    from safetensors.torch import load_file, save_file

    path = model / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"].fill_(1e38)
    save_file(tensors, path, {"format": "pt"})
