"""What weight decay leaves alone: biases, norms and states, whatever their rank."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from workers.engine.optimizer import parameter_groups

SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "vocab_size": 50}
# Family -> its settings, and the last parts of the names of parameters with two dimensions or more that do not decay.
FAMILIES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "llama": ({"num_attention_heads": 2}, set()),
    "gpt2": ({"n_head": 2, "n_embd": 32, "n_layer": 2, "vocab_size": 50}, set()),
    "gpt_oss": (
        {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4},
        {"gate_up_proj_bias", "down_proj_bias"},
    ),
    "mamba": ({"state_size": 4}, {"A_log"}),
    "jamba": (
        {"num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 2, "attn_layer_offset": 1},
        {"A_log"},
    ),
    "recurrent_gemma": (
        {"num_hidden_layers": 3, "num_attention_heads": 2, "head_dim": 16, "lru_width": 32},
        {"input_gate_bias", "recurrent_gate_bias"},
    ),
    "rwkv": ({"context_length": 16}, {"time_mix_key", "time_mix_value", "time_mix_receptance"}),
    # A norm for each head.
    "cohere": ({"num_attention_heads": 2, "num_key_value_heads": 1, "use_qk_norm": True}, {"q_norm", "k_norm"}),
    "mixtral": ({"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2}, set()),
}


def decaying_and_others(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    groups = parameter_groups(model, 0.1)
    found: dict[float, dict[str, torch.Tensor]] = {0.1: {}, 0.0: {}}
    for group in groups:
        found[group["weight_decay"]].update({names.pop(id(p)): p for p in group["params"]})
    assert not names  # each in one group, once
    return found[0.1], found[0.0]


@pytest.mark.parametrize("family", FAMILIES)
def test_of_each_family_the_right_ones_are_left_alone(family: str) -> None:
    changes, spared = FAMILIES[family]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(SMALL | changes)))
    decaying, others = decaying_and_others(model)
    assert all(p.ndim >= 2 for p in decaying.values())
    assert not [name for name in decaying if name.endswith("bias") or "norm" in name or "ln_" in name]
    in_matrices = {name: p for name, p in others.items() if p.ndim >= 2}
    last = {name.removesuffix(".weight").rpartition(".")[2] for name in in_matrices}
    assert last == spared
    matrices = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear | torch.nn.Embedding)]
    assert {id(p) for p in matrices} <= {id(p) for p in decaying.values()}


def test_experts_and_routers_decay() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt_oss", **(SMALL | FAMILIES["gpt_oss"][0])))
    decaying, _ = decaying_and_others(model)
    last = {name.rpartition(".")[2] for name in decaying if ".mlp." in name}
    assert {"gate_up_proj", "down_proj", "weight"} == last


def test_a_matrix_with_one_row_decays_and_a_flat_vector_does_not() -> None:
    class Gate(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(8, 1)
            self.mix = torch.nn.Parameter(torch.zeros(1, 1, 8))
            self.table = torch.nn.Parameter(torch.zeros(3, 8))
            self.layer_scale = torch.nn.Parameter(torch.zeros(3, 8))

    decaying, others = decaying_and_others(Gate())
    assert set(decaying) == {"linear.weight", "table"}
    assert set(others) == {"linear.bias", "mix", "layer_scale"}


@pytest.mark.parametrize("rank", [1, 4])
def test_adapters_decay_and_magnitudes_do_not(rank: int) -> None:
    config = LlamaConfig(**SMALL, num_attention_heads=2, intermediate_size=16)
    adapters = LoraConfig(
        task_type="CAUSAL_LM",
        use_dora=True,
        target_modules=["q_proj", "embed_tokens"],
        r=rank,
        lora_bias=False,
        modules_to_save=["input_layernorm"],
    )
    decaying, others = decaying_and_others(get_peft_model(LlamaForCausalLM(config), adapters))
    assert len(decaying) == 2 * 2 + 2  # A and B of q_proj in two layers, and of the embedding
    assert all("lora_A" in name or "lora_B" in name or "lora_embedding" in name for name in decaying)
    assert all("magnitude" in name or "layernorm" in name for name in others)
    assert len(others) == 3 + 2
