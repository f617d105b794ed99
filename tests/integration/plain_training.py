"""The reference: the same training in plain torch, one process, no DeepSpeed, no packing, the whole batch at once."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tests.integration.zero_cases import NUM_DOMAINS, NUM_STEPS, TRAINING, global_batch, learning_rate
from workers.data.batches import Batch


def train_in_plain_torch(model_path: Path, last_step: int = NUM_STEPS) -> dict[str, Any]:
    """Losses per domain and gradient norms of the steps."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)  # two threads on such small tensors wait for each other more than they compute
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": TRAINING["weight_decay"]},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    losses, norms = [], []
    for step in range(1, last_step + 1):
        batch = global_batch(step)
        nats_B = torch.stack([sum(example_nats(model, batch, row)) for row in range(8)])
        (nats_B.sum() / batch.global_loss_tokens).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, TRAINING["max_grad_norm"])))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
        optimizer.zero_grad()
        sums = [float(nats_B.detach()[batch.domain_B == domain].sum()) for domain in range(NUM_DOMAINS)]
        counts = [int(batch.loss_mask_BL[batch.domain_B == domain].sum()) for domain in range(NUM_DOMAINS)]
        losses.append([s / n for s, n in zip(sums, counts, strict=True)])
    return {"losses": losses, "norms": norms}


def example_nats(model: Any, batch: Batch, row: int) -> list[torch.Tensor]:
    """The loss of each example of a row, every example in a row of its own that is padded at its end."""
    bounds = [*np.flatnonzero(batch.position_ids_BL[row] == 0), batch.input_ids_BL.shape[1]]
    examples = [(start, end) for start, end in itertools.pairwise(bounds) if end - start > 1]
    length = max(end - start for start, end in examples)
    ids = torch.zeros(len(examples), length, dtype=torch.int64)
    mask = torch.zeros(len(examples), length, dtype=torch.bool)
    for i, (start, end) in enumerate(examples):
        ids[i, : end - start] = torch.from_numpy(batch.input_ids_BL[row, start:end].astype(np.int64))
        mask[i, : end - start] = torch.from_numpy(batch.loss_mask_BL[row, start:end])
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    nats = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return list((nats * mask[:, 1:]).sum(dim=1))
