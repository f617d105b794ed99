"""The proof of isolation: which way each kind of model is right in, and that a leak is caught."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, PreTrainedModel

from benchmarks.tiny_families import build
from workers.data.batches import Batch
from workers.data.packing import pack_examples
from workers.data.store import TokenStore
from workers.model.forward_pass import ForwardPass, passes_over
from workers.model.isolation import WAYS, PackingError, find_proof_row, prove_isolation
from workers.model.packed_forward import PackedForward

LENGTHS = (70, 31, 12, 9)  # the first is longer than the tiny models' windows of attention (64)
RIGHT_WAY = {
    "llama": "positions",
    "gemma3_text": "positions",  # windows in every other layer
    "mixtral": "positions",
    "gpt_neo": "positions",
    "opt": "mask",
    "xglm": "mask",
    "mpt": "mask",  # biases by distance, no positions
    "gpt_oss": "mask",  # a mask for each kind of layer
    "afmoe": "mask",
    "bloom": "separate",
    "mamba2": "separate",
    "jamba": "separate",
    "lfm2": "separate",
    "qwen3_next": "separate",
    "rwkv": "separate",
}


def packed_row(vocabulary: int = 128) -> Batch:
    rng = np.random.default_rng(5)
    positions = np.concatenate([np.arange(length) for length in LENGTHS])[None]
    zeros = np.zeros(1, dtype=np.int64)
    return Batch(
        step=0,
        weights_version=0,
        input_ids_BL=rng.integers(3, vocabulary - 3, size=positions.shape).astype(np.int32),
        position_ids_BL=positions,
        loss_mask_BL=positions > 0,
        domain_B=zeros,
        row_B=zeros,
        global_loss_tokens=int((positions > 0).sum()),
        global_tokens=positions.size,
        global_rows_D=zeros,
        domain_rows_seen_D=zeros,
    )


def store_of(lengths: list[int], max_length: int) -> TokenStore:
    """Examples of these lengths, packed as they always are."""
    packing = pack_examples(np.array(lengths, dtype=np.int32), max_length)
    positions_RL = np.zeros((packing.num_rows, max_length), dtype=np.int32)
    row_lengths = np.zeros(packing.num_rows, dtype=np.int32)
    for row in range(packing.num_rows):
        pieces = [np.arange(lengths[i]) for i in packing.examples[packing.offsets[row] : packing.offsets[row + 1]]]
        row_lengths[row] = sum(map(len, pieces))
        positions_RL[row, : row_lengths[row]] = np.concatenate(pieces)
    return TokenStore(
        folder=Path("store"),
        fingerprint="",
        num_rows=packing.num_rows,
        num_examples=len(lengths),
        num_tokens=sum(lengths),
        num_loss_tokens=int((positions_RL > 0).sum()),
        max_length=max_length,
        input_ids=np.full_like(positions_RL, 5),
        position_ids=positions_RL,
        loss_mask=positions_RL > 0,
        row_lengths=row_lengths,
        row_loss_tokens=(positions_RL > 0).sum(axis=1).astype(np.int32),
        row_examples=np.diff(packing.offsets).astype(np.int32),
        manifest={},
    )


def forward_of(model: PreTrainedModel) -> PackedForward:
    return PackedForward(model, model, torch.device("cpu"))


@torch.no_grad()
def alone(model: PreTrainedModel, row: Batch) -> list[float]:
    """Mean loss of each example by a call of the model on its ids, and nothing else."""
    losses = []
    for ids in np.split(row.input_ids_BL[0].astype(np.int64), np.cumsum(LENGTHS)[:-1]):
        input_ids = torch.from_numpy(ids)[None]
        logits = model(input_ids=input_ids, use_cache=False).logits[0, :-1]
        losses.append(float(torch.nn.functional.cross_entropy(logits, input_ids[0, 1:])))
    return losses


@torch.no_grad()
def packed(forward: PackedForward, row: Batch) -> list[float]:
    """Mean loss of each example in the way that was chosen."""
    losses = np.zeros(row.input_ids_BL.size)
    for one in passes_over(row, forward.way, rows_per_pass=1):
        losses[one.target_origin_N] = forward.nats(one).numpy()
    pieces = np.split(losses, np.cumsum(LENGTHS)[:-1])
    return [float(piece[1:].mean()) for piece in pieces]


@pytest.mark.parametrize("family", RIGHT_WAY)
def test_the_way_chosen_gives_each_example_its_loss_alone(family: str) -> None:
    model = build(family)
    forward, row = forward_of(model), packed_row()
    isolation = prove_isolation(forward, row)
    assert (isolation.way, forward.way) == (RIGHT_WAY[family], RIGHT_WAY[family])
    assert list(isolation.refused) == list(WAYS[: WAYS.index(isolation.way)])
    assert isolation.difference_nats is not None and isolation.difference_nats < 1e-4
    model.eval()
    assert packed(forward, row) == pytest.approx(alone(model, row), abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "mamba2", "opt"])
def test_bfloat16_finds_the_same_way(family: str) -> None:
    forward = forward_of(build(family).bfloat16())
    isolation = prove_isolation(forward, packed_row())
    assert isolation.way == RIGHT_WAY[family]
    assert isolation.difference_nats is not None and isolation.difference_nats < 0.02


class _WithholdsPositions(PackedForward):
    """The planted fault: the model never sees where examples begin."""

    def output(self, input_ids_SL: torch.Tensor, position_ids_SL: torch.Tensor, **more: Any) -> Any:
        length = input_ids_SL.shape[1]
        hidden = torch.arange(length).expand_as(input_ids_SL) if self.way == "positions" else position_ids_SL
        return super().output(input_ids_SL, hidden, **more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_withheld_positions_are_caught_and_the_next_way_taken_with_the_word(dtype: torch.dtype) -> None:
    model = build("llama").to(dtype)
    isolation = prove_isolation(_WithholdsPositions(model, model, torch.device("cpu")), packed_row())
    assert isolation.way == "mask"
    assert "an example's loss differs by" in isolation.refused["positions"]
    assert str(isolation).startswith("packed examples are kept apart by a block-diagonal mask")
    assert "not by their positions: an example's loss differs by" in str(isolation)


class _LeaksInLongRows(PackedForward):
    """Another: only what stands behind the first 64 tokens of a row is not kept apart."""

    def output(self, input_ids_SL: torch.Tensor, position_ids_SL: torch.Tensor, **more: Any) -> Any:
        if self.way == "positions" and position_ids_SL.shape[1] > 64:
            position_ids_SL = torch.arange(position_ids_SL.shape[1]).expand_as(position_ids_SL)
        return super().output(input_ids_SL, position_ids_SL, **more)


def test_a_leak_that_only_long_rows_have_is_caught() -> None:
    model = build("llama")
    isolation = prove_isolation(_LeaksInLongRows(model, model, torch.device("cpu")), packed_row())
    assert isolation.way == "mask"
    assert f"in a sequence of {sum(LENGTHS)} tokens" in isolation.refused["positions"]


def test_a_leak_that_rounding_would_hide_is_caught_by_other_tokens() -> None:
    """In bfloat16 a row and its examples alone differ by more than this leak, two rows of one shape do not."""
    model = build("llama").bfloat16()

    class LeaksALittle(PackedForward):
        def nats(self, one_pass: ForwardPass) -> torch.Tensor:
            nats_N = super().nats(one_pass)
            if self.way != "positions":
                return nats_N
            example_SL = np.cumsum(one_pass.position_ids_SL == 0, axis=1)
            is_later_N = example_SL[one_pass.sequence_N, one_pass.column_N] > 1
            leak_N = 0.02 * (one_pass.input_ids_SL[one_pass.sequence_N, 0] % 2) * is_later_N
            return nats_N + torch.from_numpy(leak_N)

    row = packed_row()
    row.input_ids_BL[0, 0], row.input_ids_BL[0, 23] = 10, 11  # the first token, and the one that is first if reversed
    isolation = prove_isolation(LeaksALittle(model, model, torch.device("cpu")), row)
    assert "other tokens in one example change another's loss" in isolation.refused["positions"]


def test_a_leak_of_several_rows_in_a_pass_is_caught() -> None:
    """As with flash attention, which transformers tells of packed examples only where a batch has one row."""
    model = build("llama")

    class LeaksInSeveralRows(PackedForward):
        def output(self, input_ids_SL: torch.Tensor, position_ids_SL: torch.Tensor, **more: Any) -> Any:
            if self.way in ("positions", "mask") and len(position_ids_SL) > 1:
                self.way, way = "positions", self.way
                plain = torch.arange(position_ids_SL.shape[1]).expand_as(position_ids_SL)
                output = super().output(input_ids_SL, plain, **more)
                self.way = way
                return output
            return super().output(input_ids_SL, position_ids_SL, **more)

    assert prove_isolation(LeaksInSeveralRows(model, model, torch.device("cpu")), packed_row()).way == "lengths"


def test_the_row_of_the_proof_is_found_behind_rows_of_one_long_example() -> None:
    """Packing puts the longest first, so that they come first in a store."""
    lengths = [16] * 300 + [4] * 8
    store = store_of(lengths, max_length=16)
    assert (store.row_examples[:300] == 1).all()
    row = find_proof_row([store])
    assert row is not None and row.row_B[0] >= 300
    assert row.position_ids_BL.tolist() == [[0, 1, 2, 3] * 4]
    assert row.loss_mask_BL.tolist() == (row.position_ids_BL > 0).tolist()
    assert find_proof_row([store_of([16] * 5, max_length=16)]) is None


def test_a_leak_in_evaluation_alone_is_caught() -> None:
    """As with a cache, which transformers turns off while training with checkpointed activations."""
    model = build("llama")

    class LeaksInEvaluation(PackedForward):
        def output(self, input_ids_SL: torch.Tensor, position_ids_SL: torch.Tensor, **more: Any) -> Any:
            if self.way == "positions" and not self.model.training:
                position_ids_SL = torch.arange(position_ids_SL.shape[1]).expand_as(position_ids_SL)
            return super().output(input_ids_SL, position_ids_SL, **more)

    assert prove_isolation(LeaksInEvaluation(model, model, torch.device("cpu")), packed_row()).way == "mask"


def test_a_difference_on_another_rank_counts() -> None:
    differences: Iterator[float] = iter([math.nan])
    isolation = prove_isolation(forward_of(build("llama")), packed_row(), lambda mine: next(differences, mine))
    assert isolation.way == "mask"
    assert "differs by nan" in isolation.refused["positions"]


def test_a_model_that_looks_ahead_is_refused() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    model = BertLMHeadModel(BertConfig(vocab_size=128, initializer_range=0.3, **sizes))
    with pytest.raises(
        PackingError, match=r"even on later ones \(positions: .*separate: .*not a causal language model"
    ):
        prove_isolation(forward_of(model), packed_row())


def test_a_model_whose_loss_is_no_number_is_told_as_such() -> None:
    model = build("llama")
    model.get_output_embeddings().weight.data[5] = math.nan
    with pytest.raises(PackingError, match="on a single example is NaN or infinite"):
        prove_isolation(forward_of(model), packed_row())


def test_dropout_of_a_configuration_does_not_disturb_the_proof_either() -> None:
    model = build("falcon")
    model.config.hidden_dropout = 0.3
    assert prove_isolation(forward_of(model), packed_row()).way == "mask"
    assert model.config.hidden_dropout == 0.3


def test_a_model_that_cannot_be_called_is_told_in_a_line() -> None:
    model = build("llama")
    model.model.layers[0].mlp.up_proj = torch.nn.Linear(64, 7)
    with pytest.raises(PackingError, match=r"cannot be called on a single example \(RuntimeError: "):
        prove_isolation(forward_of(model), packed_row())


def test_dropout_does_not_disturb_the_proof_and_is_back_afterwards() -> None:
    model = build("gpt2")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    model.train()
    assert prove_isolation(forward_of(model), packed_row()).way == "positions"
    assert model.training
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}


def test_a_row_of_one_example_needs_no_proof() -> None:
    calls: list[ForwardPass] = []
    model = build("mamba2")
    model.register_forward_hook(lambda *given: calls.append(given[0]))
    isolation = prove_isolation(forward_of(model), None)
    assert (isolation.way, isolation.difference_nats, calls) == ("positions", None, [])
    assert str(isolation) == "every sequence holds a single example, so there is nothing to keep apart"


def test_the_proof_costs_fewer_than_three_forward_passes_of_a_row() -> None:
    """Counted in tokens, where the first way is right; a model that takes a later one pays for short rows on top."""
    row = packed_row()
    long = {name: np.tile(getattr(row, name), 8) for name in ("input_ids_BL", "position_ids_BL", "loss_mask_BL")}
    for family in ("llama", "opt", "lfm2"):
        model = build(family)
        num_tokens = 0

        def count(module: Any, given: Any, named: dict[str, Any], output: Any) -> None:
            nonlocal num_tokens
            num_tokens += named["input_ids"].numel()

        model.register_forward_hook(count, with_kwargs=True)
        prove_isolation(forward_of(model), replace(row, **long))
        assert num_tokens < 3 * long["input_ids_BL"].size, family
