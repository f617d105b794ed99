"""Masked training twice: through the engine on every rank, and in plain torch with the mask written out by hand."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.integration.plain_training import example_nats
from tests.integration.zero_cases import (
    NUM_DOMAINS,
    TRAINING,
    VOCABULARY,
    Case,
    build_engine,
    global_batch,
    reduced_loss,
    whole_state,
)
from tests.integration.zero_cases import learning_rate as learning_rate

ALL = ["attention", "o", "gate", "feed_forward"]


def train_watched(case: Case) -> dict[str, Any]:
    """Train a case; losses by step and after it, masters, observed changes, and how many elements the rank steps."""
    from workers.engine.zero_state import stepped_tensors

    engine = build_engine(case)
    losses, observed = [], []
    for step in range(1, case.last_step + 1):
        losses.append(reduced_loss(*engine.forward_backward(global_batch(step, engine.rank, engine.world_size), 3)))
        if engine.attachment:
            engine.attachment.watch()
        engine.step(learning_rate(step))
        if engine.attachment:
            observed.append(engine.attachment.observations())
    masters = {name: whole[0] for name, whole in whole_state(engine).items()}
    num_stepped = sum(tensor.numel() for tensor, _ in stepped_tensors(engine))
    final = reduced_loss(*engine.forward(global_batch(99, engine.rank, engine.world_size), NUM_DOMAINS))
    engine.destroy()
    return {
        "losses": losses,
        "masters": masters,
        "observed": observed,
        "final": final,
        "num_stepped": num_stepped,
    }


def error_of_building(case: Case) -> str:
    """The error that this rank raises when it builds its engine."""
    try:
        build_engine(case).destroy()
    except ValueError as error:
        return str(error)
    return "no error"


@functools.cache
def importance_file(num_layers: int = 2, num_heads: int = 4, num_neurons: int = 127, width: int = 64) -> Path:
    """Random importance with exact zeros and ones in it."""
    from workers.strategies.cofitune.importance import write_importance

    rng = np.random.default_rng(5)
    sizes = {"head": num_heads, "up": num_neurons, "down": width}
    importance = {kind: rng.random((num_layers, size), dtype=np.float32) for kind, size in sizes.items()}
    for kind in ("up", "down"):
        importance[kind][:, ::7] = 1.0
        importance[kind][:, 1::7] = 0.0
    importance["head"][:, 2] = 1.0  # with two query heads a key-value head, the second one of those is frozen
    path = Path(tempfile.mkdtemp(prefix="raymix-importance-")) / "importance.safetensors"
    write_importance(path, importance, {})
    return path


def strategy(file: Path | None = None, **changes: Any) -> dict[str, Any]:
    """The tests' strategy: all modules of the upper of two layers."""
    importance = {"files": [str(file or importance_file())]}
    return {"type": "cofitune", "layers": [0.5, 1.0], "modules": ALL, "importance": importance, **changes}


def rows_of_llama(importance: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Importance of each row of a parameter of the tiny Llama: head size 16, two query heads a key-value head."""
    layer = int(name.split(".")[2])
    head = importance["head"][layer]
    match name.split(".")[4]:
        case "q_proj":
            return np.repeat(head, 16)
        case "k_proj" | "v_proj":
            return np.repeat([max(head[0], head[1]), max(head[2], head[3])], 16)
        case "up_proj" | "gate_proj":
            return importance["up"][layer]
        case "down_proj":
            return importance["down"][layer]
        case _:
            return np.zeros(64, dtype=np.float32)


def train_masked_in_plain_torch(
    model_path: Path,
    keeps: Callable[[str, torch.Tensor], torch.Tensor],
    importance: Callable[[str, torch.Tensor], torch.Tensor],
    mode: str,
    last_step: int,
) -> dict[str, Any]:
    """One process, no DeepSpeed, no packing.

    Args:
        keeps: of each parameter, 1 where it trains and 0 where it is frozen, broadcastable to it.
        importance: of each parameter, broadcastable to it.
        mode: update, gradient or none.
    """
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    named = {name: p for name, p in model.named_parameters() if keeps(name, p).any()}
    model.requires_grad_(False)
    for p in named.values():
        p.requires_grad_(True)
    groups = [
        {"params": [p for p in named.values() if p.ndim >= 2], "weight_decay": TRAINING["weight_decay"]},
        {"params": [p for p in named.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    losses = []
    for step in range(1, last_step + 1):
        batch = global_batch(step)
        nats_B = torch.stack([sum(example_nats(model, batch, row)) for row in range(8)])
        (nats_B.sum() / batch.global_loss_tokens).backward()
        for name, p in named.items():
            p.grad.mul_(keeps(name, p))
        torch.nn.utils.clip_grad_norm_(named.values(), TRAINING["max_grad_norm"])
        before = {name: p.detach().clone() for name, p in named.items()}
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        for name, p in named.items():
            if mode == "gradient":
                p.grad.mul_(1 - importance(name, p))
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, p in named.items():
                free = 1 - importance(name, p) if mode == "update" else torch.ones(1)
                p.copy_(before[name] + keeps(name, p) * free * (p - before[name]))
        losses.append(mean_by_domain(nats_B, batch))
    with torch.no_grad():
        batch = global_batch(99)
        final = mean_by_domain(torch.stack([sum(example_nats(model, batch, row)) for row in range(8)]), batch)
    return {"losses": losses, "masters": {name: p.detach() for name, p in named.items()}, "final": final}


def mean_by_domain(nats_B: torch.Tensor, batch: Any) -> list[float]:
    """Mean loss of each domain, in nats per token."""
    return [
        float(nats_B.detach()[batch.domain_B == d].sum()) / int(batch.loss_mask_BL[batch.domain_B == d].sum())
        for d in range(NUM_DOMAINS)
    ]


@functools.cache
def fused_model() -> Path:
    """A small Phi3: q, k and v share one matrix, gate and up another."""
    from transformers import Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=51,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    folder = Path(tempfile.mkdtemp(prefix="raymix-fused-"))
    Phi3ForCausalLM(config).save_pretrained(folder)
    return folder


def base_weights(model_path: Path) -> dict[str, torch.Tensor]:
    """The weights that a training starts from."""
    from safetensors.torch import load_file

    return load_file(model_path / "model.safetensors")
