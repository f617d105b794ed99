"""Scores of heads and neurons: how much two dropout passes of the base model would disagree if a unit were scaled.

Virtual gates of ones are put on every head, intermediate neuron and feed-forward output. Two passes over a batch, p1
and p2, differ only by their dropout; the gradient of KL(p2 || p1) with respect to a gate is its unit's score. Nothing
is trained: the weights are frozen, only gates have gradients, and gradients flow through both passes.
Source: arXiv 2404.10306 and its code, after DAS (arXiv 2302.03241).

Shapes: B rows, L tokens, V vocabulary, H heads, F intermediate neurons, U hidden units; N layers.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from workers.config.model import ModelConfig
from workers.data.permutation import derive_key, permutation
from workers.data.store import TokenStore
from workers.model.forward_pass import Way
from workers.model.isolation import find_proof_row, prove_isolation
from workers.model.loading import load_model
from workers.model.packed_forward import PackedForward
from workers.strategies.cofitune.architectures import (
    Architecture,
    architecture_of,
    decoder_layers,
    row_modules,
    sizes_of,
    submodule,
)
from workers.strategies.cofitune.importance import KINDS, Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_Tokens = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""input_ids_BL, position_ids_BL, is_used_BL."""


class GatedModel:
    """A model with permanent gates of ones and two dropouts, for measuring only.

    All other dropout is off. A head's gate scales the head's input to the output projection, which equals scaling its
    attention probabilities after the softmax (and their dropout), because both are linear.
    """

    def __init__(self, model: "PreTrainedModel", dropout: float, way: Way = "positions") -> None:
        architecture = architecture_of(model.config.get_text_config().model_type, ["up", "down", "o"])
        sizes = sizes_of(model, architecture)
        self._packed = PackedForward(model, model, model.device, way)
        self.gates: dict[str, list[torch.Tensor]] = {kind: [] for kind in KINDS}
        model.requires_grad_(False).eval()
        lengths = {"head": sizes.num_heads, "up": sizes.intermediate, "down": sizes.hidden}
        dtype = torch.promote_types(torch.float32, model.dtype)
        for layer in decoder_layers(model, architecture):
            gate = {kind: torch.ones(lengths[kind], dtype=dtype, device=model.device) for kind in KINDS}
            for kind in KINDS:
                self.gates[kind].append(gate[kind].requires_grad_())
            output, up, down = (submodule(layer, architecture.modules[name]) for name in ("o", "up", "down"))
            rows_of_up = row_modules(architecture, architecture.modules["up"], sizes)[0] == "up"
            output.register_forward_pre_hook(_gate_heads(gate["head"]))
            up.register_forward_hook(_gate_rows(gate["up"], rows_of_up))
            down.register_forward_hook(_gate_and_drop(gate["down"], dropout))
            _set_attention_dropout(submodule(layer, architecture.attention), architecture, dropout)

    def divergence(
        self, input_ids_BL: torch.Tensor, position_ids_BL: torch.Tensor, is_used_BL: torch.Tensor, seed: int
    ) -> torch.Tensor:
        """Sum of KL(p2 || p1) over the used positions, in nats; the dropout is a function of the seed.

        The paper's additional factors (0.1 and 1 / batch size) cancel in both normalisations.
        """
        with torch.random.fork_rng(devices=[input_ids_BL.device] if input_ids_BL.is_cuda else []):
            torch.manual_seed(seed)
            logits = [self._logits(input_ids_BL, position_ids_BL)[is_used_BL] for _ in range(2)]
        log_p1_NV, log_p2_NV = (F.log_softmax(logits_NV, dim=-1) for logits_NV in logits)
        return (log_p2_NV.exp() * (log_p2_NV - log_p1_NV)).sum()

    def _logits(self, input_ids_BL: torch.Tensor, position_ids_BL: torch.Tensor) -> torch.Tensor:
        logits = self._packed.output(input_ids_BL, position_ids_BL).logits
        return logits.to(torch.promote_types(torch.float32, logits.dtype))


def accumulate_scores(gated: GatedModel, batches: Sequence[_Tokens], seed: int) -> Scores:
    """Gradients of the gates, summed over batches.

    Gradients start at 0 for every batch. The released code never resets them, so that an early batch counts once more
    for every later one; here all tokens count equally.
    """
    shapes = {kind: (len(gates), len(gates[0])) for kind, gates in gated.gates.items()}
    signed, absolute = ({kind: np.zeros(shape) for kind, shape in shapes.items()} for _ in range(2))
    flat = [gate for kind in KINDS for gate in gated.gates[kind]]
    num_tokens = 0
    for number, (input_ids_BL, position_ids_BL, is_used_BL) in enumerate(batches):
        batch_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        divergence = gated.divergence(input_ids_BL, position_ids_BL, is_used_BL, batch_seed)
        gradients = iter(torch.autograd.grad(divergence, flat))
        for kind in KINDS:
            gradient = np.stack([next(gradients).double().cpu().numpy() for _ in gated.gates[kind]])
            signed[kind] += gradient
            absolute[kind] += np.abs(gradient)
        num_tokens += int(is_used_BL.sum())
    return Scores(signed, absolute, num_tokens)


def measure_scores(
    model: ModelConfig, store_folder: Path, num_rows: int, rows_per_pass: int, dropout: float, seed: int
) -> Scores:
    """Scores of the base model on rows of one token store; loads the whole model, on the GPU if there is one.
    ValueError if neither positions nor a mask keep the model's packed examples apart."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded: Any = load_model(model)
    store = TokenStore.open(store_folder)
    isolation = prove_isolation(PackedForward(loaded.to(device), loaded, device), find_proof_row([store]))
    if isolation.way not in ("positions", "mask"):
        raise ValueError(f"importance of heads and neurons: set data.packing: false for this model; {isolation}")
    gated = GatedModel(loaded, dropout, isolation.way)
    batches = list(_batches(store, num_rows, rows_per_pass, seed, device))
    return accumulate_scores(gated, batches, seed)


def _batches(
    store: TokenStore, num_rows: int, rows_per_pass: int, seed: int, device: torch.device
) -> Iterator[_Tokens]:
    """Drawn rows, grouped by length; padding is not used."""
    drawn = permutation(derive_key("importance", seed), store.num_rows)[:num_rows]
    drawn = drawn[np.argsort(store.row_lengths[drawn], kind="stable")]
    for start in range(0, len(drawn), rows_per_pass):
        rows = drawn[start : start + rows_per_pass]
        length = int(store.row_lengths[rows].max())
        ids, positions = (np.asarray(a[rows, :length], dtype=np.int64) for a in (store.input_ids, store.position_ids))
        is_used = np.arange(length) < np.asarray(store.row_lengths[rows])[:, None]
        yield tuple(torch.from_numpy(array).to(device) for array in (ids, positions, is_used))  # type: ignore[misc]


def _gate_heads(gate_H: torch.Tensor) -> Any:
    def scale(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        by_head = inputs[0].unflatten(-1, (len(gate_H), -1)) * gate_H[:, None]
        return by_head.flatten(-2).to(inputs[0].dtype), *inputs[1:]

    return scale


def _gate_rows(gate_F: torch.Tensor, is_gated_R: NDArray[np.bool_]) -> Any:
    """In a shared matrix, only the rows of one module are gated."""
    index = torch.from_numpy(np.flatnonzero(is_gated_R)).to(gate_F.device)
    ones_R = torch.ones(len(is_gated_R), dtype=gate_F.dtype, device=gate_F.device)

    def scale(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return (output * ones_R.index_copy(0, index, gate_F)).to(output.dtype)

    return scale


def _gate_and_drop(gate_U: torch.Tensor, dropout: float) -> Any:
    def scale(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return F.dropout((output * gate_U).to(output.dtype), dropout)

    return scale


def _set_attention_dropout(attention: Any, architecture: Architecture, dropout: float) -> None:
    # Attention drops probabilities only in training mode; its children stay in evaluation mode.
    attention.training = True
    own = getattr(attention, architecture.dropout)
    if isinstance(own, torch.nn.Dropout):
        own.p = dropout
    else:
        setattr(attention, architecture.dropout, dropout)
