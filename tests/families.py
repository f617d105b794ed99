"""Small random models of several families, with the tests' vocabulary: tied and untied, dense and of experts."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.integration.zero_cases import VOCABULARY

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
_WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 8}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "llama, wide": _WIDE,
    "llama, wide, tied": _WIDE | {"tie_word_embeddings": True},
    "qwen2, tied": {"tie_word_embeddings": True},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "mixtral": _EXPERTS,
    "gpt_oss": {**_EXPERTS, "sliding_window": 64},
    # Experts, shared experts, a dense layer first, and a persistent buffer in each router.
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
    },
}
FAMILIES = tuple(_FAMILIES)


@functools.cache
def family_model(family: str) -> Path:
    """A folder with a model whose weights are large enough to matter and whose buffers are not the defaults."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(0)
    config = CONFIG_MAPPING[family.partition(",")[0]](**_COMMON | _FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config).float()
    stored = model.state_dict()
    for p in model.parameters():
        if p.ndim > 1:
            p.data.normal_(0, 0.15)
    for name, buffer in model.named_buffers():
        if name in stored and buffer.is_floating_point():
            buffer.data.uniform_(0.5, 1.5)
    folder = Path(tempfile.mkdtemp(prefix="raymix-family-"))
    model.save_pretrained(folder)
    return folder
