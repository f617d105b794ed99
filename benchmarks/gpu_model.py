"""The model of `make gpu`, what it is trained on, its losses in float32, and the operations that it needs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Sizes:
    """A model in Qwen2's shape, and what it is trained on."""

    hidden: int
    neurons: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    length: int
    """Tokens in a sequence."""
    mean_example: int
    """Tokens in an example."""
    rows: tuple[int, ...]
    """Sequences in a pass: the first that the estimate says will fit."""
    steps: int
    """Steps that are timed."""


QWEN_HALF_BILLION = Sizes(896, 4864, 24, 14, 2, 151_936, length=4096, mean_example=500, rows=(8, 4, 2, 1), steps=10)
SMALL = Sizes(256, 704, 4, 4, 2, 2048, length=512, mean_example=120, rows=(4,), steps=12)
TINY = Sizes(32, 64, 2, 4, 2, 256, length=128, mean_example=30, rows=(2,), steps=4)
"""For the tests: the same parts in seconds on the CPU."""


def write_model(folder: Path, sizes: Sizes) -> Path:
    """A model of random weights in bfloat16, tied embeddings."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = Qwen2Config(
        hidden_size=sizes.hidden,
        intermediate_size=sizes.neurons,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_value_heads,
        vocab_size=sizes.vocabulary,
        max_position_embeddings=max(sizes.length, 512),
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def example_lengths(sizes: Sizes, seed: int) -> list[int]:
    """Lengths of the examples that fill one sequence exactly; most are short, some long."""
    rng = np.random.default_rng([1, seed])
    lengths: list[int] = []
    while (room := sizes.length - sum(lengths)) > 0:
        length = int(np.clip(rng.lognormal(np.log(sizes.mean_example) - 0.32, 0.8), 4, sizes.length))
        lengths.append(room if room - length < 4 else length)
    return lengths


def packed_batch(sizes: Sizes, step: int, num_rows: int, num_different: int = 2) -> Any:
    """Rows of packed examples without padding whose tokens all count. Few steps differ, so that losses fall."""
    from workers.data.batches import MeasuredRow, collate

    rows: list[MeasuredRow | None] = []
    for number in range(num_rows):
        seed = step % num_different * num_rows + number
        position_ids_L = np.concatenate([np.arange(length) for length in example_lengths(sizes, seed)])
        # Some tokens are frequent, as in text.
        ids_L = np.random.default_rng([2, seed]).zipf(1.3, sizes.length) % (sizes.vocabulary - 1) + 1
        none_L = np.full(sizes.length, -1, dtype=np.int64)
        rows.append(MeasuredRow(0, number, ids_L.astype(np.int32), position_ids_L, position_ids_L > 0, none_L))
    batch, _ = collate(rows, num_domains=1)
    return replace(batch, step=step, global_tokens=batch.input_ids_BL.size)


def plain_losses(model_folder: Path, sizes: Sizes, num_rows: int) -> list[float]:
    """The same steps in float32, without DeepSpeed and packing: every example alone, the gradient of their mean."""
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    losses = []
    for step in range(sizes.steps):
        batch = packed_batch(sizes, step, num_rows)
        starts = np.flatnonzero(batch.position_ids_BL.ravel() == 0)[1:]
        total = 0.0
        for ids in np.split(batch.input_ids_BL.ravel().astype(np.int64), starts):
            ids_1L = torch.from_numpy(ids)[None].to(device)
            logits = model(input_ids=ids_1L, use_cache=False).logits[0, :-1]
            nats = F.cross_entropy(logits, ids_1L[0, 1:], reduction="sum")
            (nats / batch.global_loss_tokens).backward()
            total += float(nats)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total / batch.global_loss_tokens)
    return losses


def model_flops(sizes: Sizes, lengths: Sequence[int]) -> float:
    """Operations of a forward and backward pass over examples of these lengths, as the model needs them: matrix
    products and causal attention within an example, nothing computed twice. An addition and a product are two."""
    head = sizes.hidden // sizes.heads
    projections = sizes.hidden * head * (2 * sizes.heads + 2 * sizes.key_value_heads)
    weights = sizes.layers * (projections + 3 * sizes.hidden * sizes.neurons) + sizes.hidden * sizes.vocabulary
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    forward = 2 * weights * sum(lengths) + 2 * 2 * sizes.layers * sizes.heads * head * pairs
    return 3 * forward
