"""Losses in chunks: those of the family's own logits, and their gradients, without the logits of all targets."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from benchmarks.tiny_families import VOCABULARY, build
from workers.model import chunked_loss
from workers.model.chunked_loss import CHUNK_LOGIT_BYTES, LOGIT_BYTES, LOGITS_LIMIT, ChunkedLoss, gradient_bytes
from workers.model.forward_pass import ForwardPass
from workers.model.packed_forward import PackedForward

FAMILIES = (
    "llama",
    "gemma2",  # soft-capped, tied
    "cohere",  # times a scale
    "granite",  # divided by a scale
    "minicpm3",  # hidden states divided before the head
    "falcon_h1",  # a scale that stands in the decoder
    "gptj",  # a bias
    "mixtral",
    "mamba2",  # asks the head for its dtype
    "xlstm",  # soft-capped; no `logits_to_keep`
    "opt",
)
LENGTH, CHUNK = 33, 7


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(chunked_loss, "LOGITS_LIMIT", CHUNK * CHUNK_LOGIT_BYTES * VOCABULARY)
    monkeypatch.setattr(chunked_loss, "gradient_bytes", lambda parameters: 0)
    yield


def a_pass() -> ForwardPass:
    """Two sequences of unlike targets: all of one, some of the other."""
    rng = np.random.default_rng(3)
    ids_SL = rng.integers(3, VOCABULARY - 3, size=(2, LENGTH))
    mask_SL = np.stack([np.ones(LENGTH - 1, bool), rng.random(LENGTH - 1) < 0.4])
    sequence_N, column_N = np.nonzero(mask_SL)
    zeros = np.zeros(len(sequence_N), dtype=np.int64)
    positions = np.tile(np.arange(LENGTH), (2, 1))
    target_N = ids_SL[sequence_N, column_N + 1]
    return ForwardPass(ids_SL, positions, sequence_N, column_N, target_N, zeros, np.arange(2 * LENGTH).reshape(2, -1))


def forward_of(model: PreTrainedModel) -> PackedForward:
    return PackedForward(model, model, torch.device("cpu"))


def plain_nats(model: PreTrainedModel, one: ForwardPass) -> torch.Tensor:
    """By plain transformers: all logits, and their logarithm."""
    logits_SLV = model(input_ids=torch.from_numpy(one.input_ids_SL), use_cache=False).logits.float()
    log_p = logits_SLV[one.sequence_N, one.column_N].log_softmax(-1)
    return -log_p.gather(1, torch.from_numpy(one.target_N)[:, None])[:, 0]


def gradients_of(model: PreTrainedModel, nats_N: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (nats_N.sum() * 0.3).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(model: PreTrainedModel, one: ForwardPass, rtol: float = 1e-6, gradient_rtol: float = 1e-4) -> None:
    forward = forward_of(model)
    (planned,) = forward.plan([one])
    assert planned.in_chunks
    expected, found = plain_nats(model, one), forward.nats(planned)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol)
    theirs, ours = gradients_of(model, expected), gradients_of(model, found)
    assert theirs.keys() == ours.keys()
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= gradient_rtol * gradient.norm() + 1e-6, name
    with torch.no_grad():
        torch.testing.assert_close(forward.nats(planned), expected.detach(), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_the_familys_logits(family: str) -> None:
    assert_equal(build(family).train(), a_pass(), rtol=2e-6)


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_head_may_be_tied_and_have_a_bias(is_tied: bool) -> None:
    model: Any = build("llama")
    model.lm_head = torch.nn.Linear(64, VOCABULARY)
    if is_tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    assert_equal(model, a_pass())


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_head_may_have_an_adapter_with_dropout(use_dora: bool) -> None:
    from peft import LoraConfig, get_peft_model

    model = build("llama")
    wrapped = get_peft_model(
        model, LoraConfig(r=4, lora_dropout=0.5, target_modules=["lm_head", "q_proj"], use_dora=use_dora)
    )
    for name, p in wrapped.named_parameters():
        if "lora_B" in name:  # zero at first
            p.data.normal_(0, 0.1)
    assert_equal(model.eval(), a_pass())
    forward = PackedForward(wrapped.train(), model, torch.device("cpu"))
    (planned,) = forward.plan([a_pass()])
    torch.manual_seed(1)
    first = forward.nats(planned)
    assert not torch.equal(forward.nats(planned), first)
    torch.manual_seed(1)
    assert torch.equal(forward.nats(planned), first)


def test_bfloat16_losses_are_float32_and_gradients_no_worse() -> None:
    """Sums over chunks are in float32, so that more chunks are not less precise than one product."""
    exact = build("llama")
    errors = []
    for in_chunks in (False, True):
        model = copy.deepcopy(exact).bfloat16()
        reference = copy.deepcopy(model).float()
        forward = forward_of(model)
        nats_N = forward.nats(forward.plan([a_pass()])[0] if in_chunks else a_pass())
        assert nats_N.dtype == torch.float32
        torch.testing.assert_close(nats_N, plain_nats(reference, a_pass()), rtol=0, atol=0.2)
        expected = gradients_of(reference, plain_nats(reference, a_pass()))["lm_head.weight"]
        found = gradients_of(model, nats_N)["lm_head.weight"].float()
        errors.append(float((found - expected).norm() / expected.norm()))
    assert errors[1] < 1.05 * errors[0]


def test_a_gradients_own_hook_acts_once() -> None:
    """As those do that mask rows of a matrix."""
    model: Any = build("llama")
    model.lm_head.weight.register_hook(lambda gradient: gradient * 0.5)
    assert_equal(model, a_pass())


def test_frozen_weights_get_no_gradient() -> None:
    model = build("gemma2")
    for name, p in model.named_parameters():
        p.requires_grad_("layers.1" in name)
    assert_equal(model, a_pass())
    only_head = build("llama")
    for name, p in only_head.named_parameters():
        p.requires_grad_("lm_head" in name)
    assert_equal(only_head, a_pass())


def test_what_is_trained_beside_the_head_gets_no_gradient() -> None:
    model: Any = build("llama")
    model.score = torch.nn.Linear(64, 1)
    assert_equal(model, a_pass())
    assert model.score.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pass_without_targets_goes_backward_through_the_same_weights(dtype: torch.dtype) -> None:
    model, one = build("llama").to(dtype), a_pass()
    none = np.zeros(0, dtype=np.int64)
    idle = replace(one, sequence_N=none, column_N=none, target_N=none, domain_N=none, in_chunks=True)
    nats_N = forward_of(model).nats(idle)
    assert nats_N.shape == (0,)
    gradients = gradients_of(model, nats_N)
    assert gradients.keys() == dict(model.named_parameters()).keys()
    assert all(not gradient.any() for gradient in gradients.values())
    with torch.no_grad():
        assert forward_of(model).nats(idle).shape == (0,)


def test_few_logits_are_computed_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_loss, "LOGITS_LIMIT", LOGITS_LIMIT)
    model, one = build("gemma2"), a_pass()
    forward = forward_of(model)
    (planned,) = forward.plan([one])
    assert planned is one
    columns = np.unique(one.column_N)
    logits = model(
        input_ids=torch.from_numpy(one.input_ids_SL), use_cache=False, logits_to_keep=torch.from_numpy(columns)
    ).logits
    chosen = logits[one.sequence_N, np.searchsorted(columns, one.column_N)]
    expected = F.cross_entropy(chosen, torch.from_numpy(one.target_N), reduction="none")
    assert torch.equal(forward.nats(planned), expected)


def test_the_limit_counts_what_the_head_computes() -> None:
    """Columns that one sequence needs are computed for all; where the family keeps all, those are."""
    one = a_pass()
    forward = forward_of(build("llama"))
    size = 2 * (LENGTH - 1) * LOGIT_BYTES * VOCABULARY
    for limit, keeps, expected in ((size, True, False), (size - 1, True, True), (size, False, True)):
        chunked_loss.LOGITS_LIMIT = limit
        forward.keeps_logits = keeps
        assert forward.plan([one])[0].in_chunks == expected
    chunked_loss.LOGITS_LIMIT = size
    forward.keeps_logits = True
    assert forward.plan([one], on_any_rank=lambda mine: True)[0].in_chunks


@pytest.mark.parametrize(
    ("is_trained", "dtype", "expected"),
    [(True, torch.bfloat16, False), (True, torch.float32, False), (False, torch.bfloat16, True)],
)
def test_chunks_that_would_take_more_than_the_logits_are_not_made(
    is_trained: bool, dtype: torch.dtype, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They sum the gradient of the head in float32, and hold that of one chunk if it has another precision."""
    monkeypatch.setattr(chunked_loss, "gradient_bytes", gradient_bytes)
    model: Any = build("llama").to(dtype)
    model.lm_head.weight.requires_grad_(is_trained)
    logits = 2 * (LENGTH - 1) * LOGIT_BYTES * VOCABULARY
    gradients = VOCABULARY * 64 * (4 if dtype == torch.float32 else 4 + 2)
    chunked_loss.LOGITS_LIMIT = logits - gradients
    assert forward_of(model).plan([a_pass()])[0].in_chunks == expected
    chunked_loss.LOGITS_LIMIT -= 1
    assert forward_of(model).plan([a_pass()])[0].in_chunks


def test_a_model_whose_losses_differ_in_chunks_keeps_its_logits() -> None:
    model: Any = build("llama")

    class Mixing(torch.nn.Module):
        """A head that reads other positions too."""

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.inner(hidden.cumsum(1))
            return logits

    model.lm_head = Mixing(model.lm_head)
    forward = forward_of(model.train())
    with pytest.warns(UserWarning, match=r"losses in chunks differ by .* nats; the logits of a pass stay in memory"):
        (planned,) = forward.plan([a_pass()])
    assert not planned.in_chunks
    assert model.training
    assert not forward.plan([a_pass()])[0].in_chunks  # without another word


def test_a_model_without_a_head_keeps_its_logits() -> None:
    model: Any = build("llama")
    model.get_output_embeddings = lambda: None
    with pytest.warns(UserWarning, match=r"losses in chunks fail \(ValueError: .*which part is the head"):
        assert not forward_of(model).plan([a_pass()])[0].in_chunks


def test_unequal_weights_of_losses_are_refused() -> None:
    model = build("llama")
    forward = forward_of(model)
    (planned,) = forward.plan([a_pass()])
    nats_N = forward.nats(planned)
    with pytest.raises(ValueError, match="with the same weight"):
        (nats_N * torch.arange(len(nats_N))).sum().backward()


def test_nothing_of_a_pass_outlives_it() -> None:
    """Without the garbage collector, which may come late: a sum of gradients is as large as the head."""
    import gc
    import weakref

    held: list[weakref.ref[torch.Tensor]] = []

    class Watched(ChunkedLoss):
        def forward(self, hidden_NH: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
            held.append(weakref.ref(hidden_NH))
            return super().forward(hidden_NH, target_N)

    class WatchedTail(chunked_loss.Tail):
        def adds_up(self, parameter: torch.nn.Parameter) -> torch.Tensor | None:
            held.append(weakref.ref(self._copy))
            total = super().adds_up(parameter)
            if total is not None:
                held.append(weakref.ref(total))
            return total

    model = build("llama")
    forward = forward_of(model)
    forward._loss = Watched(model)
    (planned,) = forward.plan([a_pass()])
    gc.collect()
    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chunked_loss, "Tail", WatchedTail)
            forward.nats(planned).sum().backward()
        assert len(held) > 2
        assert [ref() for ref in held] == [None] * len(held)
    finally:
        gc.enable()


def test_the_model_is_as_before() -> None:
    model: Any = build("gemma2")
    head, hooks = model.lm_head, dict(model.model._forward_hooks)
    forward = forward_of(model)
    forward.nats(forward.plan([a_pass()])[0])
    assert model.lm_head is head
    assert "forward" not in vars(model)
    assert dict(model.model._forward_hooks) == hooks
    assert sum(p.numel() for p in ChunkedLoss(model).parameters()) == 0
    assert math.isfinite(float(forward.nats(a_pass()).detach().sum()))
