"""Verification of an export: what plain transformers reads back is compared, tensor by tensor and by its loss.

The loss is measured on single examples, so that packing plays no role; every token counts. Tensors are compared by
hash, so that rank 0 holds only one model at a time.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from workers.data.batches import Batch

if TYPE_CHECKING:
    from workers.engine.engine import Engine

_MAX_TOKENS = 256  # verification may run on a CPU, and more tokens prove no more

_FLOAT32_TOLERANCE_NATS = 1e-4
_BFLOAT16_TOLERANCE_NATS, _BFLOAT16_SPREAD_NATS = 0.02, 0.2
"""Nats per token. In float32 kernels differ by 1e-6. In bfloat16 a fully trained model is read back bit for bit, but
an adapter is not: merged, W + BA is rounded to 8 bits, and B(Ax) differently, which changes single tokens by up to 0.1
and their mean by less the more there are. A wrong model is off by far more; what changes the loss less (one adapter in
hundreds) shows in the tensors."""


class ExportError(RuntimeError):
    """An exported folder is not the trained model; it was not committed."""


@dataclass(frozen=True)
class Fingerprint:
    """A tensor's content in its precision."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    sha256: str


def fingerprint(tensor: torch.Tensor) -> Fingerprint:
    plain = tensor.detach().to("cpu").contiguous()
    content = plain.reshape(-1).view(torch.uint8).numpy()
    return Fingerprint(plain.dtype, tuple(plain.shape), hashlib.sha256(content.data).hexdigest())


def held_out_examples(batches: Sequence[Batch]) -> Batch:
    """The first examples of the evaluation batches' rows, each as a separate row with all tokens as targets; up to 256
    tokens in all, truncating the last."""
    examples: list[tuple[NDArray[Any], int]] = []
    for batch in batches:
        for ids_L, positions_L in zip(batch.input_ids_BL, batch.position_ids_BL, strict=True):
            # A row's first example ends where positions restart: at the next example, or at padding.
            length = int(np.append(np.flatnonzero(positions_L[1:] == 0), len(positions_L) - 1)[0]) + 1
            room = _MAX_TOKENS - sum(known for _, known in examples)
            if length > 1 and room > 1:
                examples.append((ids_L, min(length, room)))
    lengths_B = np.array([length for _, length in examples])
    input_ids_BL = np.zeros((len(examples), lengths_B.max()), dtype=np.int32)
    for row, (ids_L, length) in enumerate(examples):
        input_ids_BL[row, :length] = ids_L[:length]
    column_L = np.arange(lengths_B.max())
    is_used_BL = column_L < lengths_B[:, None]
    return replace(
        batches[0],
        input_ids_BL=input_ids_BL,
        position_ids_BL=np.where(is_used_BL, column_L, 0).astype(np.int32),
        loss_mask_BL=is_used_BL & (column_L > 0),
        domain_B=np.zeros(len(examples), dtype=np.int64),
        row_B=np.arange(len(examples), dtype=np.int64),
        global_loss_tokens=int((lengths_B - 1).sum()),
    )


def engine_loss(engine: "Engine", examples: Batch) -> float:
    """Nats per token of the examples with the weights in training; a collective."""
    loss_sum_D, num_tokens_D = engine.forward(examples, 1)
    return float(loss_sum_D[0]) / max(int(num_tokens_D[0]), 1)


@torch.no_grad()
def _plain_loss(model: Any, examples: Batch) -> float:
    """The same with a plain transformers or peft model, example by example."""
    loss_sum, model = 0.0, model.eval()
    for ids_L, is_target_L in zip(examples.input_ids_BL, examples.loss_mask_BL, strict=True):
        input_ids_1L = torch.from_numpy(ids_L[: int(is_target_L.sum()) + 1].astype(np.int64))[None]
        logits_LV = model(input_ids=input_ids_1L, use_cache=False).logits[0, :-1].float()
        loss_sum += float(torch.nn.functional.cross_entropy(logits_LV, input_ids_1L[0, 1:], reduction="sum"))
    return loss_sum / max(int(examples.loss_mask_BL.sum()), 1)


def check_loss(what: str, model: Any, examples: Batch, expected: float, dtype: str) -> None:
    """Refuse a plain model whose loss on the examples differs from the engine's."""
    loss = _plain_loss(model, examples)
    num_tokens = max(int(examples.loss_mask_BL.sum()), 1)
    tolerance = _FLOAT32_TOLERANCE_NATS
    if dtype == "bfloat16":
        tolerance = _BFLOAT16_TOLERANCE_NATS + _BFLOAT16_SPREAD_NATS / math.sqrt(num_tokens)
    if not abs(loss - expected) <= tolerance:  # `not <=` also refuses NaN
        raise ExportError(
            f"{what} has a loss of {loss:.6f} nats per token on {num_tokens} held-out tokens, the trained model "
            f"{expected:.6f}; they may differ by {tolerance:.4f} in {dtype}. Nothing was written to the folder"
        )


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    bad = [name for name, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if bad:
        raise ExportError(f"{len(bad)} of {len(tensors)} tensors are not finite, first {bad[0]}; no model was written")


def load_plain(folder: Path, dtype: str = "auto") -> Any:
    """The model of a folder as plain transformers loads it; `auto` is the precision in its configuration. ExportError
    if the model and the files do not have the same keys and shapes."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    model, loading = loaded
    faults = {kind: sorted(map(str, loading[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")}
    listed = [f"{len(keys)} {kind}, first {keys[0]}" for kind, keys in faults.items() if keys]
    if listed:
        raise ExportError(f"the exported folder does not load completely: {'; '.join(listed)}. It was not committed")
    return model


def check_tensors(model: Any, expected: Mapping[str, Fingerprint]) -> None:
    """Compare every entry of a model's state with the expected tensor, in the precision of the files."""
    state = model.state_dict()
    absent = sorted(expected.keys() - state.keys())
    known = {state[name].data_ptr() for name in expected.keys() & state.keys()}
    # Any other entry must be another name for the same memory: a tied weight.
    added = sorted(name for name, t in state.items() if name not in expected and t.data_ptr() not in known)
    # A family may load some tensors as float32 whatever the files hold: converting back loses nothing.
    found = {name: fingerprint(state[name].to(trained.dtype)) for name, trained in expected.items() if name in state}
    differing = [name for name, read in found.items() if read != expected[name]]
    for names, what in ((absent, "is not in"), (added, "was not trained but is in"), (differing, "differs in")):
        if names:
            raise ExportError(
                f"{names[0]} {what} the exported model ({len(names)} of {len(expected)} tensors). "
                "Nothing was written to the folder"
            )


def check_adapter(folder: Path) -> None:
    """Refuse a folder whose adapters lack one half or are not finite; more cannot be checked without the base."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    check_finite(tensors)
    for half, other in (("lora_A", "lora_B"), ("lora_B", "lora_A"), ("lora_embedding_A", "lora_embedding_B")):
        alone = [name for name in tensors if half in name and name.replace(half, other) not in tensors]
        if alone:
            raise ExportError(f"{alone[0]} has no {other} in {folder.name} ({len(alone)} of {len(tensors)} tensors)")


def fingerprints(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, Fingerprint]:
    """Fingerprint of each distinct tensor, under the first of its names."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors:
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen.add(tensor.data_ptr())
        found[name] = fingerprint(tensor)
    return found
