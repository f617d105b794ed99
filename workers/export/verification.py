"""An export proves itself: what plain transformers reads back is compared, tensor by tensor and in its loss.

The loss is measured on examples that stand alone, so that packing plays no role; every token of them counts.
Tensors are compared by hash, so that rank 0 holds one model at a time.
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

_MAX_TOKENS = 256  # the proof may run on a CPU, and more tokens prove no more

_FLOAT32_TOLERANCE_NATS = 1e-4
_BFLOAT16_TOLERANCE_NATS, _BFLOAT16_SPREAD_NATS = 0.02, 0.2
"""Nats a token. In float32 kernels differ by 1e-6. In bfloat16 a model trained in full is read back to the bit, but an
adapter is not: W + BA is rounded to 8 bits once merged, and B(Ax) is otherwise, which moves single tokens by up to 0.1
and, being chance, their mean by less the more there are. A wrong model is off by far more, and what moves the loss by
less (one adapter of hundreds) the tensors show."""


class ExportError(RuntimeError):
    """An exported folder is not the trained model. It was not committed."""


@dataclass(frozen=True)
class Fingerprint:
    """A tensor's content, in the precision that it had."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    sha256: str


def fingerprint(tensor: torch.Tensor) -> Fingerprint:
    """Of a tensor on any device."""
    plain = tensor.detach().to("cpu").contiguous()
    content = plain.reshape(-1).view(torch.uint8).numpy()
    return Fingerprint(plain.dtype, tuple(plain.shape), hashlib.sha256(content.data).hexdigest())


def held_out_examples(batches: Sequence[Batch]) -> Batch:
    """The examples that begin the rows of the first evaluation batches, each a row of its own, all tokens targets:
    as many as come to 256 tokens, and at least one, cut where it is longer."""
    examples: list[tuple[NDArray[Any], int]] = []
    for batch in batches:
        for ids_L, positions_L in zip(batch.input_ids_BL, batch.position_ids_BL, strict=True):
            # A row's first example ends where positions start again: with the next example, or with padding.
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
    """Nats a token of the examples with the weights being trained; a collective."""
    loss_sum_D, num_tokens_D = engine.forward(examples, 1)
    return float(loss_sum_D[0]) / max(int(num_tokens_D[0]), 1)


@torch.no_grad()
def plain_loss(model: Any, examples: Batch) -> float:
    """The same with a model of plain transformers or peft, example by example."""
    loss_sum, model = 0.0, model.eval()
    for ids_L, is_target_L in zip(examples.input_ids_BL, examples.loss_mask_BL, strict=True):
        input_ids_1L = torch.from_numpy(ids_L[: int(is_target_L.sum()) + 1].astype(np.int64))[None]
        logits_LV = model(input_ids=input_ids_1L, use_cache=False).logits[0, :-1].float()
        loss_sum += float(torch.nn.functional.cross_entropy(logits_LV, input_ids_1L[0, 1:], reduction="sum"))
    return loss_sum / max(int(examples.loss_mask_BL.sum()), 1)


def check_loss(what: str, examples: Batch, loss: float, expected: float, dtype: str) -> None:
    """Refuse a loss that is not the engine's."""
    num_tokens = max(int(examples.loss_mask_BL.sum()), 1)
    tolerance = _FLOAT32_TOLERANCE_NATS
    if dtype == "bfloat16":
        tolerance = _BFLOAT16_TOLERANCE_NATS + _BFLOAT16_SPREAD_NATS / math.sqrt(num_tokens)
    if not abs(loss - expected) <= tolerance:  # so that NaN is refused
        raise ExportError(
            f"{what} has a loss of {loss:.6f} nats a token on {num_tokens} held-out tokens, the trained model "
            f"{expected:.6f}; they may differ by {tolerance:.4f} in {dtype}. Nothing was written to the folder"
        )


def check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights with NaN or infinity."""
    bad = [name for name, t in tensors.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if bad:
        raise ExportError(f"{len(bad)} of {len(tensors)} tensors are not finite, first {bad[0]}; no model was written")


def load_plain(folder: Path, dtype: str = "auto") -> Any:
    """The model of a folder as anybody loads it; `auto` is the precision that its configuration names.

    Raises:
        ExportError: keys of the model are in no file, keys of the files in no model, or shapes differ.
    """
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    model, loading = loaded
    faults = {kind: sorted(map(str, loading[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")}
    told = [f"{len(keys)} {kind}, first {keys[0]}" for kind, keys in faults.items() if keys]
    if told:
        raise ExportError(f"the exported folder does not load completely: {'; '.join(told)}. It was not committed")
    return model


def check_tensors(model: Any, expected: Mapping[str, Fingerprint]) -> None:
    """Compare every entry of a model's state with what was to be written, in the precision that it was written in."""
    state = model.state_dict()
    absent = sorted(expected.keys() - state.keys())
    known = {state[name].data_ptr() for name in expected.keys() & state.keys()}
    # What is there beside must be another name of the same memory: a tied weight.
    added = sorted(name for name, t in state.items() if name not in expected and t.data_ptr() not in known)
    differing = [name for name, print_ in expected.items() if name in state and _differs(state[name], print_)]
    for names, what in ((absent, "is not in"), (added, "was not trained but is in"), (differing, "is another in")):
        if names:
            raise ExportError(
                f"{names[0]} {what} the exported model ({len(names)} of {len(expected)} tensors). "
                "Nothing was written to the folder"
            )


def check_adapter(folder: Path) -> None:
    """Refuse a folder whose adapters lack a half or are not finite; the base model is not at hand to try them on."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    check_finite(tensors)
    for half, other in (("lora_A", "lora_B"), ("lora_B", "lora_A"), ("lora_embedding_A", "lora_embedding_B")):
        alone = [name for name in tensors if half in name and name.replace(half, other) not in tensors]
        if alone:
            raise ExportError(f"{alone[0]} has no {other} in {folder.name} ({len(alone)} of {len(tensors)} tensors)")


def fingerprints(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, Fingerprint]:
    """Of each tensor once, under the first of its names."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors:
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen.add(tensor.data_ptr())
        found[name] = fingerprint(tensor)
    return found


def _differs(tensor: torch.Tensor, expected: Fingerprint) -> bool:
    # A family may keep some tensors in float32 whatever the files hold: no value is lost on the way up and back.
    return fingerprint(tensor.to(expected.dtype)) != expected
