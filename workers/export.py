"""The trained model as a Hugging Face folder that `from_pretrained` loads; complete or absent.

Full fine-tuning: the folder holds the model. LoRA: the folder holds the merged model, `adapter/` the adapters alone.
The engine is only read: it can train on.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workers.collectives import on_rank_zero
from workers.durable import commit_folder, temporary_folder
from workers.model import load_model

if TYPE_CHECKING:
    from workers.engine import Engine


def export_model(engine: "Engine", tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the current weights and the tokenizer to `folder`, replacing what was there; a collective."""
    adapted = hasattr(engine.module, "get_base_model")
    weights = _gather(engine, only_trainable=adapted)
    write = _write_adapted if adapted else _write_full
    on_rank_zero(lambda: _write(folder, write, engine, tokenizer, weights))


def _gather(engine: "Engine", only_trainable: bool) -> dict[str, torch.Tensor]:
    """The model's weights on rank 0's CPU, one by one; nothing on the other ranks."""
    import deepspeed

    weights = {}
    for name, p in engine.module.named_parameters():
        if only_trainable and not p.requires_grad:
            continue
        with deepspeed.zero.GatheredParameters([p], enabled=engine.zero_stage == 3):
            if engine.rank == 0:
                weights[name] = p.detach().to("cpu", copy=True)
    return weights


def _write(
    folder: Path, write: Any, engine: "Engine", tokenizer: PreTrainedTokenizerBase, weights: dict[str, torch.Tensor]
) -> None:
    temporary = temporary_folder(folder)
    write(engine, weights, temporary)
    tokenizer.save_pretrained(temporary)
    commit_folder(temporary, folder)


def _write_full(engine: "Engine", weights: dict[str, torch.Tensor], folder: Path) -> None:
    _save(engine.module, folder, weights)


def _write_adapted(engine: "Engine", weights: dict[str, torch.Tensor], folder: Path) -> None:
    from peft import PeftModel

    engine.module.save_pretrained(folder / "adapter", state_dict=weights)
    # Merged into a fresh copy of the base model: merging in place and back would change the weights being trained.
    merged = PeftModel.from_pretrained(load_model(engine.model_config), folder / "adapter").merge_and_unload()
    _save(merged, folder)


def _save(model: PreTrainedModel, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    used = model.config.use_cache
    model.config.use_cache = True  # training turns the cache off; whoever generates with the result wants it on
    try:
        model.save_pretrained(folder, state_dict=weights)
    finally:
        model.config.use_cache = used
