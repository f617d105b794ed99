"""The auxiliary router loss: what the engine trains is the family's own function of the tokens that are no padding."""

import functools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from tests.integration import zero_cases
from tests.integration.zero_cases import Case, global_batch, training_of
from tests.integration.zero_processes import processes

COEFFICIENT = 0.5  # large, so that it shows


@functools.cache
def tiny_mixtral() -> Path:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=zero_cases.VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        initializer_range=0.2,
        router_aux_loss_coef=COEFFICIENT,
        pad_token_id=0,
    )
    folder = Path(tempfile.mkdtemp(prefix="raymix-mixtral-"))
    MixtralForCausalLM(config).save_pretrained(folder)
    return folder


def plain_step(micro_batch_size: int, router_coefficient: float) -> tuple[float, dict[str, torch.Tensor]]:
    """Router loss and gradients of a step by plain transformers, each example alone: a micro batch's router loss is of
    its tokens up to the last one that predicts a target, and counts by the targets."""
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_mixtral(), dtype=torch.float32)
    batch = global_batch(1)
    loss, router_loss = torch.zeros(()), torch.zeros(())
    for first in range(0, 8, micro_batch_size):
        rows = range(first, first + micro_batch_size)
        mask_BL = batch.loss_mask_BL[rows.start : rows.stop]
        length = int(np.nonzero(mask_BL[:, 1:])[1].max(initial=0)) + 1
        logits_of_layers: list[list[torch.Tensor]] = [[], []]
        for row in rows:
            ids, positions, mask = batch.input_ids_BL[row], batch.position_ids_BL[row], batch.loss_mask_BL[row]
            starts = np.flatnonzero((positions == 0) & (ids > 0))
            for start, end in zip(starts, [*starts[1:], int((ids > 0).sum())], strict=True):
                input_ids = torch.from_numpy(ids[start:end].astype(np.int64))[None]
                output = model(input_ids=input_ids, output_router_logits=True, use_cache=False)
                is_target = torch.from_numpy(mask[start + 1 : end])
                nats = F.cross_entropy(output.logits[0, :-1], input_ids[0, 1:], reduction="none")
                loss = loss + nats[is_target].sum() / batch.global_loss_tokens
                num_read = max(0, min(end, length) - start)
                for kept, logits in zip(logits_of_layers, output.router_logits, strict=True):
                    kept.append(logits[:num_read])
        value = load_balancing_loss_func(tuple(torch.cat(kept) for kept in logits_of_layers), 4, 2)
        router_loss = router_loss + router_coefficient * value * int(mask_BL.sum()) / batch.global_loss_tokens
    (loss + router_loss).backward()
    return float(router_loss.detach()), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("micro_batch_size", "checkpointing", "targets_in_chunk"),
    [(2, False, None), (2, True, None), (8, False, None), (8, True, None), (8, False, 7)],
)
def test_router_loss_and_its_gradient_are_those_of_plain_transformers(
    micro_batch_size: int, checkpointing: bool, targets_in_chunk: int | None
) -> None:
    training = training_of(0, micro_batch_size=micro_batch_size, activation_checkpointing=checkpointing)
    case = Case(tiny_mixtral(), training, targets_in_chunk=targets_in_chunk)
    loss_sums, router_loss, gradients = processes(1).run(zero_cases.router_losses, case)[0]
    expected, expected_gradients = plain_step(micro_batch_size, COEFFICIENT)
    assert router_loss == pytest.approx(expected, rel=1e-5)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
    # What is measured and fed back is cross-entropy alone, and the key turns the rest off.
    off = {**training, "router_loss": False}
    sums_without, none, gradients_without = processes(1).run(zero_cases.router_losses, replace(case, training=off))[0]
    assert (loss_sums, none) == (sums_without, 0.0)
    _, expected_without = plain_step(micro_batch_size, 0.0)
    for name, gradient in expected_without.items():
        torch.testing.assert_close(gradients_without[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_ranks_together_have_the_router_loss_of_one() -> None:
    case = Case(tiny_mixtral(), training_of(0))
    alone = processes(1).run(zero_cases.router_losses, case)[0][1]
    # Each of two ranks sees the whole batch here: the same passes twice.
    both = [result[1] for result in processes(2).run(zero_cases.router_losses, case)]
    assert both == pytest.approx([alone, alone], rel=1e-6)


@pytest.mark.parametrize("way", ["mask", "separate"])
def test_every_way_trains_it(way: str) -> None:
    """Under a mask transformers cannot sum up the routers itself."""
    case = Case(tiny_mixtral(), training_of(0, micro_batch_size=8), way=way)
    router_loss = processes(1).run(zero_cases.router_losses, case)[0][1]
    expected, _ = plain_step(8, COEFFICIENT)
    assert router_loss == pytest.approx(expected, rel=0.15 if way == "separate" else 1e-5)
