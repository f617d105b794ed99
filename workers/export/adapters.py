"""LoRA's two results: the adapters alone, for plain peft, and the adapters merged into a fresh base model."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workers.export.verification import ExportError, check_loss, plain_loss
from workers.model.base_config import base_name
from workers.model.loading import load_model

if TYPE_CHECKING:
    from workers.data.batches import Batch
    from workers.engine.engine import Engine

_NAME = "default"  # peft's, of the only adapter


def save_adapter(engine: "Engine", weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Write only what peft needs: the trained tensors, and a configuration with the public name of the base."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = copy.deepcopy(engine.module.peft_config[_NAME])
    config.inference_mode = True
    config.base_model_name_or_path = base_name(engine.model_config.path)
    config.revision = engine.model_config.revision
    tensors = get_peft_model_state_dict(engine.module, state_dict=weights, save_embedding_layers=False)
    folder.mkdir(parents=True)
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, folder / "adapter_model.safetensors", {"format": "pt"}
    )
    config.save_pretrained(folder)


def merge_adapter(
    engine: "Engine", weights: dict[str, torch.Tensor], folder: Path, examples: "Batch", expected_loss: float
) -> Any:
    """A fresh base model with a folder's adapters merged, after verifying that they are the trained ones.

    Merging in place and undoing it would change the weights in training.

    Raises:
        ExportError: an adapter is missing or differs, in the folder or in the merged model.
    """
    from peft import PeftModel

    base: Any = load_model(engine.model_config)
    _untie(base, weights)
    adapted: Any = PeftModel.from_pretrained(base, folder)
    _compare(adapted, weights)
    dtype = engine.model_config.dtype
    check_loss(
        "the base model with the exported adapter", examples, plain_loss(adapted, examples), expected_loss, dtype
    )
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


def _compare(adapted: Any, weights: dict[str, torch.Tensor]) -> None:
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
        update = None if layer.use_dora.get(_NAME) else layer.get_delta_weight(_NAME)
        layer.merge(safe_merge=True)
        is_unchanged = torch.equal(before, getattr(owner, leaf))
        # In bfloat16 a small update may be rounded away legitimately.
        if (
            is_unchanged
            and update is not None
            and not torch.equal(before, (before.float() + update.float()).to(before.dtype))
        ):
            raise ExportError(
                f"the adapter of {name} did not reach the merged model. Nothing was written to the folder"
            )
