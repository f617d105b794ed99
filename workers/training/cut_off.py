"""The best model of a run whose last attempt was killed: what the end of that attempt would have written."""

from dataclasses import dataclass
from typing import Any

import torch

from workers.config.model import ModelConfig
from workers.data.end_of_turn import taught_end
from workers.engine.checkpoint import BEST, read_best
from workers.engine.stored_tensors import StoredTensors
from workers.engine.trainable import load_trainable
from workers.export import KeptModel, export_kept, held_out_examples
from workers.model.tokenizer import load_tokenizer
from workers.training.plan import TrainingPlan
from workers.validation.held_out import draw_sample
from workers.validation.loss_meter import build_evaluation_batches


@dataclass
class _Loaded:
    """The model as the engine had it, on the CPU; its trained parameters are not read."""

    module: Any
    model_config: ModelConfig
    rank: int = 0


def write_best(plan: TrainingPlan) -> None:
    """Turn the best model beside the checkpoints, which has to be there, into the folder `best/`.

    Needs no GPU, and memory for the model alone: neither an engine nor moments.

    Raises:
        ValueError: a file of it is damaged.
        ExportError: as `export_model`.
    """
    checkpoints = plan.folder / "checkpoints"
    content = read_best(checkpoints)
    assert content is not None
    config = plan.start.model if plan.start else plan.model
    module = load_trainable(config, plan.training, {"zero_optimization": {"stage": 0}})
    for parameter in module.parameters():
        if parameter.requires_grad:  # as DeepSpeed has it: peft's adapters are created in float32
            parameter.data = parameter.data.to(getattr(torch, config.dtype))
    train_stores, eval_stores = plan.open_stores()
    samples = {name: draw_sample(store, plan.evaluation.max_rows) for name, store in eval_stores.items()}
    state = content["state"]
    num_ranks = state.get("num_data_ranks", content["world_size"])  # older ones had no slices of sequences
    # Those of rank 0, which measured the loss.
    batches = build_evaluation_batches(eval_stores, samples, plan.training.micro_batch_size, 0, num_ranks)
    tokenizer = load_tokenizer(plan.model)
    kept = KeptModel(StoredTensors(checkpoints / BEST, content["tensors"]), state["loss_nats"])
    export_kept(
        _Loaded(module, config),
        tokenizer,
        plan.folder / "best",
        held_out_examples([part.batch for part in batches]),
        taught_end(tokenizer, train_stores.values()),
        kept,
    )
