"""The folder of a trained model: gathered, written under a temporary name, verified, committed.

With full fine-tuning the folder holds the model, with LoRA the merged model and, in `adapter/`, the adapters alone.
The engine is only read and can continue to train.

The model stops at the token that training taught as the end of a turn. A base model often has a different end token
than its chat template; unchanged, the trained model would write the template's and continue.
"""

import gc
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workers.data.end_of_turn import renders_alike
from workers.durable import commit_folder, temporary_folder
from workers.engine.collectives import on_rank_zero
from workers.export.adapters import merge_adapter, save_adapter
from workers.export.verification import (
    Fingerprint,
    check_finite,
    check_loss,
    check_tensors,
    engine_loss,
    fingerprints,
    load_plain,
    plain_loss,
)

if TYPE_CHECKING:
    from workers.data.batches import Batch
    from workers.engine.engine import Engine


def export_model(
    engine: "Engine", tokenizer: PreTrainedTokenizerBase, folder: Path, examples: "Batch", end_id: int | None
) -> None:
    """Write the current weights and the tokenizer to `folder`, replacing what was there; a collective.

    `examples` are for the verification (`held_out_examples`). `end_id` is the token that training taught as the end of
    a turn; None keeps the base model's end token.

    Raises:
        ExportError: weights are not finite, or the written folder is not the trained model; an older folder is
            unchanged.
    """
    examples = on_rank_zero(lambda: examples)  # every rank has different ones
    expected_loss = engine_loss(engine, examples)
    weights = _gather(engine, only_trainable=_is_adapted(engine))
    on_rank_zero(lambda: _write(engine, tokenizer, folder, weights, examples, expected_loss, end_id))


def _is_adapted(engine: "Engine") -> bool:
    return hasattr(engine.module, "get_base_model")


def _gather(engine: "Engine", only_trainable: bool) -> dict[str, torch.Tensor]:
    """The model's parameters and persistent buffers, each once, on rank 0's CPU; empty on other ranks."""
    import deepspeed

    gathered: dict[str, torch.Tensor] = {}
    seen: set[int] = set()  # a tied weight has several names
    for name, value in engine.module.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(
                f"{name} of the model's state is a {type(value).__name__}, which weights files cannot store"
            )
        if id(value) in seen or (only_trainable and not value.requires_grad):
            continue
        seen.add(id(value))
        with deepspeed.zero.GatheredParameters([value], enabled=hasattr(value, "ds_id")):
            if engine.rank == 0:
                gathered[name] = value.detach().to("cpu", copy=True)
    return gathered


def _write(
    engine: "Engine",
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: dict[str, torch.Tensor],
    examples: "Batch",
    expected_loss: float,
    end_id: int | None,
) -> None:
    check_finite(weights)
    temporary = temporary_folder(folder)
    try:
        if _is_adapted(engine):
            save_adapter(engine, weights, temporary / "adapter")
            merged = merge_adapter(engine, weights, temporary / "adapter", examples, expected_loss)
            written = fingerprints(merged.state_dict().items())
            _save(merged, temporary)
            del merged
        else:
            written = fingerprints(weights.items())
            _save(engine.module, temporary, weights)
        weights.clear()
        gc.collect()
        if end_id is not None:
            stop_at(end_id, temporary)
        save_tokenizer(tokenizer, end_id, temporary)
        _verify(temporary, written, examples, expected_loss, engine.model_config.dtype)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    commit_folder(temporary, folder)


def _verify(folder: Path, written: dict[str, Fingerprint], examples: "Batch", expected_loss: float, dtype: str) -> None:
    model = load_plain(folder)
    check_tensors(model, written)
    check_loss("the exported model", examples, plain_loss(model, examples), expected_loss, dtype)


def _save(model: PreTrainedModel, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    used = model.config.use_cache
    model.config.use_cache = True  # training turns the cache off, but generation needs it
    try:
        # A copy of the mapping: transformers removes what it has written.
        model.save_pretrained(folder, state_dict=dict(weights) if weights is not None else None)
    finally:
        model.config.use_cache = used


def stop_at(end_id: int, folder: Path) -> None:
    """Put the token first among the end tokens in both configurations of an exported folder.

    The files are edited, not the objects: transformers refuses to save a generation configuration whose
    sampling settings contradict each other, as some published ones do.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    generation_file = folder / "generation_config.json"
    generation = json.loads(generation_file.read_text(encoding="utf-8")) if generation_file.exists() else {}
    former = _ids(generation.get("eos_token_id", config.get("eos_token_id")))
    ids = [end_id, *(i for i in former if i != end_id)]
    generation["eos_token_id"] = ids
    config["eos_token_id"] = ids if len(ids) > 1 else end_id
    for file, content in ((generation_file, generation), (folder / "config.json", config)):
        file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, end_id: int | None, folder: Path) -> None:
    """Write the tokenizer with the end of a turn as its end token, unless that changes what its template writes."""
    former = tokenizer.eos_token
    if end_id is not None and end_id != tokenizer.eos_token_id:
        token = str(tokenizer.convert_ids_to_tokens(end_id))
        if renders_alike(tokenizer, token):
            tokenizer.eos_token = token
    try:
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.eos_token = former


def _ids(value: Any) -> list[int]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]
