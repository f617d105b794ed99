"""The folder of a trained model: gathered, written under a temporary name, verified, committed.

With full fine-tuning the folder holds the model, with LoRA the adapters merged into a fresh base model and, in
`adapter/`, the adapters alone, for plain peft. The engine is only read and can continue to train.

The model stops at the token that training taught as the end of a turn. A base model often has a different end token
than its chat template; unchanged, the trained model would write the template's and continue.
"""

import copy
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workers.config.model import ModelConfig
from workers.data.end_of_turn import renders_alike
from workers.durable import commit_folder, temporary_folder
from workers.engine.collectives import on_rank_zero
from workers.engine.stored_tensors import StoredTensors
from workers.export.verification import (
    ExportError,
    check_finite,
    check_loss,
    check_tensors,
    engine_loss,
    fingerprints,
    load_plain,
)
from workers.model.base_config import base_name
from workers.model.loading import load_model
from workers.strategies.lora.quantised import computed_weights

if TYPE_CHECKING:
    from workers.data.batches import Batch
    from workers.engine.engine import Engine

_ADAPTER = "default"  # peft's, of the only adapter
_MAX_FILE_SIZE = "5GB"


class TrainedModel(Protocol):
    """What is read of an engine. Without one, any object that has it will do."""

    module: Any
    """As the strategy returned it."""
    model_config: ModelConfig
    rank: int


@dataclass(frozen=True)
class KeptModel:
    """A model of an earlier step of the same engine, by its trained parameters."""

    masters: StoredTensors
    loss_nats: float
    """Its `verification_loss`, measured at that step."""


def export_model(
    engine: "Engine",
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    examples: "Batch",
    end_id: int | None,
    kept: KeptModel | None = None,
) -> None:
    """Write the current weights, or those of a kept model, and the tokenizer to `folder`, replacing what was there; a
    collective.

    `examples` are for the verification (`held_out_examples`). `end_id` is the token that training taught as the end of
    a turn; None keeps the base model's end token.

    Raises:
        ExportError: weights are not finite, or the written folder is not the trained model; an older folder is
            unchanged.
    """
    expected_loss = kept.loss_nats if kept else verification_loss(engine, examples)
    weights = _gather(engine, _is_adapted(engine), kept.masters if kept else None)
    on_rank_zero(lambda: _write(engine, tokenizer, folder, weights, examples, expected_loss, end_id))


def export_kept(
    model: TrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    examples: "Batch",
    end_id: int | None,
    kept: KeptModel,
) -> None:
    """As `export_model` with a kept model, in one process; the parameters of `model` that are trained are not read."""
    weights = _gather(model, _is_adapted(model), kept.masters)
    _write(model, tokenizer, folder, weights, examples, kept.loss_nats, end_id)


def verification_loss(engine: "Engine", examples: "Batch") -> float:
    """Nats per token of rank 0's examples with the current weights; a collective."""
    return engine_loss(engine, on_rank_zero(lambda: examples))


def _is_adapted(model: TrainedModel) -> bool:
    return hasattr(model.module, "get_base_model")


def _gather(model: TrainedModel, only_trainable: bool, masters: StoredTensors | None) -> dict[str, torch.Tensor]:
    """The model's parameters and persistent buffers, each once, on rank 0's CPU; empty on other ranks. What is trained
    is read from `masters`, if given, and rounded as in a step."""
    import deepspeed

    gathered: dict[str, torch.Tensor] = {}
    seen: set[int] = set()  # a tied weight has several names
    for name, value in model.module.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(
                f"{name} of the model's state is a {type(value).__name__}, which weights files cannot store"
            )
        if id(value) in seen or (only_trainable and not value.requires_grad):
            continue
        seen.add(id(value))
        if masters and value.requires_grad:
            if model.rank == 0:
                gathered[name] = masters.whole("master", name).to(value.dtype)
            continue
        with deepspeed.zero.GatheredParameters([value], enabled=hasattr(value, "ds_id")):
            if model.rank == 0:
                gathered[name] = value.detach().to("cpu", copy=True)
    return gathered


def _write(
    model: TrainedModel,
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
        if _is_adapted(model):
            save_adapter(model, weights, temporary / "adapter")
            merged = merge_adapter(model, weights, temporary / "adapter", examples, expected_loss)
            written = fingerprints(merged.state_dict().items())
            _save(merged, temporary)
            del merged
        else:
            written = fingerprints(weights.items())
            _save(model.module, temporary, weights)
        weights.clear()  # before the folder is loaded again: of both models, only one is in memory
        if end_id is not None:
            stop_at(end_id, temporary)
        save_tokenizer(tokenizer, end_id, temporary)
        read = load_plain(temporary)
        check_tensors(read, written)
        check_loss("the exported model", read, examples, expected_loss, model.model_config.dtype)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    commit_folder(temporary, folder)


def _save(model: PreTrainedModel, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
    used = model.config.use_cache
    model.config.use_cache = True  # training turns the cache off, but generation needs it
    try:
        # A copy of the mapping: transformers removes what it has written.
        state = dict(weights) if weights is not None else None
        model.save_pretrained(folder, state_dict=state, max_shard_size=_MAX_FILE_SIZE)
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
    former = generation.get("eos_token_id", config.get("eos_token_id"))
    ids = [end_id, *(i for i in (former if isinstance(former, list) else [former]) if i not in (None, end_id))]
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


def save_adapter(model: TrainedModel, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Write only what peft needs: the trained tensors, and a configuration with the public name of the base."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = copy.deepcopy(model.module.peft_config[_ADAPTER])
    config.inference_mode = True
    config.base_model_name_or_path = base_name(model.model_config.path)
    config.revision = model.model_config.revision
    if isinstance(config.target_modules, set):  # whose order differs between processes
        config.target_modules = sorted(config.target_modules)
    tensors = get_peft_model_state_dict(model.module, state_dict=weights, save_embedding_layers=False)
    folder.mkdir(parents=True)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "adapter_model.safetensors", {"format": "pt"})
    config.save_pretrained(folder)


def merge_adapter(
    model: TrainedModel, weights: dict[str, torch.Tensor], folder: Path, examples: "Batch", expected_loss: float
) -> Any:
    """A fresh base model with a folder's adapters merged, after verifying that they are the trained ones.

    Merging in place and undoing it would change the weights in training.

    Raises:
        ExportError: an adapter is missing or differs, in the folder or in the merged model.
    """
    from peft import PeftModel

    base: Any = load_model(model.model_config)
    with torch.no_grad():
        for name, computed in computed_weights(model.module):  # of QLoRA: what was trained is on top of these
            base.get_parameter(name).copy_(computed)
    _untie(base, weights)
    adapted: Any = PeftModel.from_pretrained(base, folder)
    _compare_adapter(adapted, weights)
    what = "the base model with the exported adapter"
    check_loss(what, adapted, examples, expected_loss, model.model_config.dtype)
    _merge_layers(adapted)
    merged = adapted.merge_and_unload()
    for p in merged.parameters():
        p.requires_grad_(False)
    return merged


def _untie(base: Any, weights: dict[str, torch.Tensor]) -> None:
    """Give the output head a separate weight if an adapter changes it, or the embeddings tied to it."""
    head, embeddings = base.get_output_embeddings(), base.get_input_embeddings()
    if head is None or embeddings is None or head.weight is not embeddings.weight:
        return
    names = [name for name, module in base.named_modules() if module is head or module is embeddings]
    if any(f".{name}." in key for name in names for key in weights):
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        for config in (base.config, base.config.get_text_config()):
            config.tie_word_embeddings = False


def _compare_adapter(adapted: Any, weights: dict[str, torch.Tensor]) -> None:
    """Check that exactly the trained tensors are read back, unchanged."""
    loaded = {name: p for name, p in adapted.named_parameters() if ".lora_" in name or ".modules_to_save." in name}
    wrong = sorted(loaded.keys() ^ weights.keys()) or [
        name for name, t in weights.items() if not torch.equal(loaded[name].detach().to(t.dtype), t)
    ]
    if wrong:
        raise ExportError(
            f"{wrong[0]} is not in the exported adapter as it was trained ({len(wrong)} of {len(weights)} tensors). "
            "Nothing was written to the folder"
        )


@torch.no_grad()
def _merge_layers(adapted: Any) -> None:
    """Merge and check layer by layer: the loss would not show that one adapter in hundreds is missing."""
    from peft.tuners.lora import LoraLayer

    layers: list[tuple[str, Any]] = [(n, m) for n, m in adapted.named_modules() if isinstance(m, LoraLayer)]
    for name, layer in layers:
        owner, leaf = layer.get_base_layer(), getattr(layer, "parameter_name", "weight")
        before = getattr(owner, leaf).detach().clone()
        update = None if layer.use_dora.get(_ADAPTER) else layer.get_delta_weight(_ADAPTER)
        layer.merge(safe_merge=True)
        if update is None or not torch.equal(before, getattr(owner, leaf)):
            continue
        # In bfloat16 a small update may be rounded away legitimately.
        if not torch.equal(before, (before.float() + update.float()).to(before.dtype)):
            raise ExportError(
                f"the adapter of {name} did not reach the merged model. Nothing was written to the folder"
            )
