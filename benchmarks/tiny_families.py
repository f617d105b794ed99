"""Random models of a few thousand parameters, of every family of causal language models that transformers builds small.

A family's own default configuration is shrunk: each size that it has under one of the usual names becomes a small one.
What that alone cannot build is in `OWN_SIZES`. Weights are large enough that examples differ by nats, and persistent
buffers hold other values than those that a fresh model has, so that a lost one shows.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCABULARY = 128
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "attention_hidden_size"), 64),
    **dict.fromkeys(("embedding_size", "lru_width"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "mlp_ffn_hidden_size", "dim_ff", "dff"), 96),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "moe_k", "num_experts_per_tok"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 512),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("head_dim", "q_lora_rank", "kv_lora_rank", "v_head_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim", "state_size", "mamba_d_state"), 8),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 16),
    "sliding_window": 64,
    "window_size": 64,
}
_LATENT = {"num_key_value_heads": 4, "head_dim": 8}
_GEMMA = {
    "layer_types": ["sliding_attention", "full_attention"],
    "num_hidden_layers": 2,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 8,
}
_LINEAR = {"num_hidden_layers": 4}
DROPPED = object()
"""A size that the family has, but does not let be set."""

OWN_SIZES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "deepseek_v3", "glm4_moe_lite", "longcat_flash", "minicpm3", "youtu"), _LATENT),
    **dict.fromkeys(("deepseek_v2", "glm_moe_dsa", "deepseek_v32", "axk2"), _LATENT),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), _LINEAR),
    "bailing_hybrid": {
        "num_hidden_layers": 4,
        "layer_group_size": 2,
        "num_local_experts": 4,
        "n_group": 2,
        "topk_group": 2,
        "num_experts_per_tok": 2,
        "head_dim": 8,
    },
    "bamba": {"num_hidden_layers": 2, "attn_layer_indices": [1]},
    "dbrx": {
        "max_seq_len": 512,
        "attn_config": {"kv_n_heads": 2},
        "ffn_config": {"ffn_hidden_size": 96, "moe_top_k": 2},
    },
    "deepseek_v2": {**_LATENT, "num_experts_per_tok": 2},
    "falcon": {"head_dim": DROPPED},
    **{family: {"head_dim": 16} for family in ("hunyuan_v1_dense", "ministral")},
    "hunyuan_v1_moe": {"head_dim": 16, "moe_topk": 2},  # with 1 the router's gradient is rounding, which Adam enlarges
    "nemotron": {"num_key_value_heads": 2, "head_dim": 16},
    "gemma3_text": {"layer_types": ["full_attention", "sliding_attention"]},
    "gemma3n_text": {**_GEMMA, "laurel_rank": 8, "vocab_size_per_layer_input": VOCABULARY},
    "gemma4_text": {**_GEMMA, "global_head_dim": 16, "vocab_size_per_layer_input": VOCABULARY},
    "gemma4_unified_text": {**_GEMMA, "global_head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "kimi_linear": {**_LATENT, "linear_head_dim": 16, "linear_num_heads": 4, "num_experts_per_tok": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "n_groups": 1, "chunk_size": 16, "expand": 2, "head_dim": 16},
    "xlstm": {"v_head_dim": DROPPED},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "num_key_value_heads": 4,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "num_key_value_heads": 4,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zaya": {"num_experts_per_tok": 1},
}


def build(family: str) -> "PreTrainedModel":
    """A model of the family in float32, always the same one."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[family]
    default = config_class()
    aliases = getattr(config_class, "attribute_map", {})
    sizes = {name: size for name, size in _SIZES.items() if name not in aliases and _has(default, name)}
    sizes = {name: size for name, size in (sizes | OWN_SIZES.get(family, {})).items() if size is not DROPPED}
    config = config_class(**sizes)
    for name, value in vars(config).items():
        if ("drop" in name or "jitter" in name) and isinstance(value, float):
            setattr(config, name, 0.0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    persistent = model.state_dict()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.15)
    for name, buffer in model.named_buffers():
        if name in persistent and buffer.is_floating_point():
            _change(buffer)
    return model


def _change(buffer: Any) -> None:
    """Other values, but zeros stay among others: some buffers are masks."""
    is_constant = bool((buffer == buffer.flatten()[0]).all())
    buffer.data.uniform_(0.5, 1.5) if is_constant else buffer.data.mul_(1.1)


def _has(config: Any, name: str) -> bool:
    # A size that may differ from layer to layer cannot be asked for as one.
    return vars(config).get(name) is not None or getattr(type(config), name, None) is not None


def write(family: str, folder: Path) -> Path:
    """The model with a tokenizer of one token a byte, as a folder that `from_pretrained` loads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>"]
    alphabet = [token for token in sorted(pre_tokenizers.ByteLevel.alphabet()) if token.isascii()]
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    build(family).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
