"""An export proves itself: what plain transformers reads back is compared, tensor by tensor and in its loss.

The loss is measured on one example that stands alone, so that packing plays no role; every token of it counts.
Tensors are compared by hash, so that rank 0 holds one model at a time.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workers.data.batches import Batch

if TYPE_CHECKING:
    from workers.engine import Engine

_MAX_TOKENS = 256  # the proof may run on a CPU, and more tokens prove no more

LOSS_TOLERANCE_NATS = {"float32": 1e-4, "bfloat16": 0.05}
"""Nats a token. In float32 kernels differ by 1e-6. In bfloat16 a model trained in full is read back to the bit, but an
adapter is not: W + BA is rounded to 8 bits once merged, and B(Ax) is otherwise. Measured with seven families (rank 8,
8 steps, 6 examples of 3 to 13 tokens each): at most 0.010, on average 0.003; the rest is for another device's kernels.
A wrong model is off by far more, and what moves the loss by less (one adapter of hundreds) the tensors show."""


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


def held_out_example(batches: Sequence[Batch]) -> Batch:
    """The longest example that begins a row of the first evaluation batch: alone, cut to 256 tokens, all targets."""
    batch = batches[0]
    # A row's first example ends where positions start again: with the next example, or with padding.
    ends_B = [np.append(np.flatnonzero(row[1:] == 0), len(row) - 1)[0] + 1 for row in batch.position_ids_BL]
    row = int(np.argmax(ends_B))
    length = min(int(ends_B[row]), _MAX_TOKENS)
    loss_mask_BL = np.ones((1, length), dtype=np.bool_)
    loss_mask_BL[:, 0] = False
    return replace(
        batch,
        input_ids_BL=batch.input_ids_BL[row : row + 1, :length].copy(),
        position_ids_BL=batch.position_ids_BL[row : row + 1, :length].copy(),
        loss_mask_BL=loss_mask_BL,
        domain_B=np.zeros(1, dtype=np.int64),
        row_B=batch.row_B[row : row + 1],
        global_loss_tokens=length - 1,
    )


def engine_loss(engine: "Engine", example: Batch) -> float:
    """Nats a token of the example with the weights being trained; a collective."""
    loss_sum_D, num_tokens_D = engine.forward(example, 1)
    return float(loss_sum_D[0]) / max(int(num_tokens_D[0]), 1)


@torch.no_grad()
def plain_loss(model: Any, example: Batch) -> float:
    """The same with a model of plain transformers or peft."""
    input_ids_BL = torch.from_numpy(example.input_ids_BL.astype(np.int64))
    logits_LV = model.eval()(input_ids=input_ids_BL, use_cache=False).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits_LV, input_ids_BL[0, 1:]))


def check_loss(what: str, loss: float, expected: float, dtype: str) -> None:
    """Refuse a loss that is not the engine's."""
    tolerance = LOSS_TOLERANCE_NATS[dtype]
    if not abs(loss - expected) <= tolerance:  # so that NaN is refused
        raise ExportError(
            f"{what} has a loss of {loss:.6f} nats a token on a held-out example, the trained model {expected:.6f}; "
            f"they may differ by {tolerance} in {dtype}. The folder was not committed"
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
        raise ExportError(f"the exported folder does not load whole: keys: {'; '.join(told)}. It was not committed")
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
                "The folder was not committed"
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
