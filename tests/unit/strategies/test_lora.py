"""Which matrices LoRA reaches, what it says of names that match nothing, and that plain peft reads its adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from benchmarks import tiny_families
from tests.families import FAMILIES, family_model
from workers.strategies.lora import LoraStrategyConfig, apply
from workers.strategies.lora.matrices import adapted_names, find_reach

# By hand: all that is no matrix, or no linear one, though it has two axes.
NOT_LINEAR = ("embed_tokens", "lm_head", "wte", "wpe", "_bias", "layernorm")


def build(family: str, device: str = "meta") -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    if device == "meta":
        config = AutoConfig.from_pretrained(family_model(family))
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    return AutoModelForCausalLM.from_pretrained(family_model(family), attn_implementation="eager")


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_is_every_linear_matrix_but_the_head(family: str) -> None:
    matrices = {
        name
        for name, p in build(family).named_parameters()
        if p.ndim >= 2 and not any(part in name for part in NOT_LINEAR)
    }
    adapted = apply(build(family), LoraStrategyConfig())
    assert adapted_names(adapted) == matrices
    reach = find_reach(adapted)
    assert reach.share_of_matrices == reach.share_of_parameters == 1.0 and not reach.left_out
    # Two trainable factors for each, and nothing else.
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * len(matrices) and all(".lora_" in name for name in trainable)


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "gpt_oss", "deepseek_v3"])
def test_plain_peft_reads_back_every_adapter(family: str, tmp_path: Path) -> None:
    """Of mixtures peft converts some names as it reads an adapter; a layer so lost would be silent."""
    from peft import PeftModel

    torch.manual_seed(1)
    adapted = apply(build(family, "cpu"), LoraStrategyConfig(rank=2))
    for name, p in adapted.named_parameters():
        if ".lora_" in name:
            p.data.normal_(0, 0.3)
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(family, "cpu"), tmp_path)
    ids = torch.randint(1, 97, (1, 20))
    with torch.no_grad():
        expected = adapted.eval()(input_ids=ids).logits
        assert torch.allclose(loaded.eval()(input_ids=ids).logits, expected, atol=1e-5)
        base = build(family, "cpu").eval()(input_ids=ids).logits
    assert not torch.allclose(base, expected, atol=0.1)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (
            "llama",
            {"target_modules": ["q_proj", "v_prj"]},
            "target_modules: the model has no 'v_prj'; the nearest are v_",
        ),
        ("llama", {"target_modules": ["input_layernorm"]}, "'input_layernorm' is a LlamaRMSNorm, which is not"),
        ("mixtral", {"target_modules": ["gate_proj"]}, "no 'gate_proj'; the nearest are gate_up_proj"),
        ("gpt2", {"target_modules": ["q_proj"]}, "the model has no 'q_proj'; the nearest are c_proj"),
        (
            "llama",
            {"modules_to_save": ["lm_hed"]},
            "modules_to_save: the model has no 'lm_hed'; the nearest are lm_head",
        ),
        ("llama", {"rank_pattern": {"q_prj": 2}}, "rank_pattern: 'q_prj' matches no adapter; the nearest are q_proj"),
        ("llama", {"alpha_pattern": {"lm_head": 2}}, "alpha_pattern: 'lm_head' matches no adapter"),
        ("gpt_oss", {"dropout": 0.1}, r"dropout: peft supports it only for linear layers, not for 6 of the 14 mat"),
        ("mixtral", {"use_dora": True}, r"use_dora: peft supports it only for linear layers"),
    ],
)
def test_what_is_asked_for_in_vain_is_an_error(family: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply(build(family), LoraStrategyConfig(**settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": []}, "target_modules is empty"),
        ({"rank_pattern": {"q_proj(": 2}}, r"rank_pattern: 'q_proj\(' is not a regular expression"),
        ({"target_modules": ["lm_head"], "modules_to_save": ["lm_head"]}, "in both target_modules and modules_to_save"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_a_model_is_there(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        LoraStrategyConfig(**settings)


def test_names_reach_modules_and_parameters_alike() -> None:
    """`down_proj` of DeepSeek: of the dense layer, of the shared expert, and of the stack of experts."""
    adapted = apply(build("deepseek_v3"), LoraStrategyConfig(target_modules=["down_proj", "q_b_proj"]))
    assert adapted_names(adapted) == {
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.1.mlp.shared_experts.down_proj.weight",
        "model.layers.1.mlp.experts.down_proj",
        "model.layers.0.self_attn.q_b_proj.weight",
        "model.layers.1.self_attn.q_b_proj.weight",
    }


def test_ranks_and_scales_follow_their_patterns() -> None:
    config = LoraStrategyConfig(
        rank=4,
        alpha=8.0,
        rank_pattern={"q_proj": 2, r"layers\.1\.mlp\.up_proj": 7},
        alpha_pattern={"q_proj": 3.0},
        use_rslora=True,
    )
    adapted = apply(build("llama"), config)
    layers = {name: m for name, m in adapted.named_modules() if hasattr(m, "lora_A")}
    layer = {name.removeprefix("base_model.model.model.layers."): m for name, m in layers.items()}
    assert layer["0.self_attn.q_proj"].r["default"] == 2 and layer["1.mlp.up_proj"].r["default"] == 7
    assert layer["0.mlp.up_proj"].r["default"] == 4
    assert layer["0.self_attn.q_proj"].scaling["default"] == pytest.approx(3.0 / 2**0.5)
    assert layer["0.mlp.up_proj"].scaling["default"] == pytest.approx(8.0 / 4**0.5)


def test_the_reach_is_told_in_a_line() -> None:
    config = LoraStrategyConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])
    lines = find_reach(apply(build("llama"), config)).lines()
    # By hand: q 32x32 and v 16x32 in both layers, of those, k 16x32, o 32x32, and three of 48x32.
    share = 2 * (1024 + 512) / (2 * (1024 + 512 + 512 + 1024 + 3 * 1536))
    assert lines[0].startswith(f"LoRA on 4 of 14 matrices (29%, {share:.0%} of their parameters): ")
    assert lines[0].endswith(": model.layers.*.self_attn.[q_proj, v_proj] (4)")
    assert lines[1] == "trained in full: lm_head"
    rest = "model.layers.*.self_attn.[k_proj, o_proj] (4), model.layers.*.mlp.[gate_proj, up_proj, down_proj] (6)"
    assert lines[2] == f"no adapter on {rest}"


def test_what_peft_refuses_is_left_out_of_all_linear_and_told() -> None:
    """Mamba's layers take the weights of some of their parts and never call these: adapters there get no gradient."""
    from transformers import AutoModelForCausalLM, MambaConfig

    mamba = AutoModelForCausalLM.from_config(MambaConfig(vocab_size=97, hidden_size=64, num_hidden_layers=2))
    adapted = apply(mamba, LoraStrategyConfig(rank=2))
    lines = find_reach(adapted).lines()
    assert lines[0].startswith("LoRA on 2 of 8 matrices (25%")
    for name in ("x_proj", "dt_proj", "out_proj"):
        assert f"MambaMixer reads the weight of {name} directly, bypassing any adapter" in lines[1]
    for name, p in adapted.named_parameters():
        if ".lora_" in name:
            p.data.normal_(0, 0.1)
    adapted(input_ids=torch.arange(20)[None], use_cache=False).logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapted.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match="'dt_proj': MambaMixer reads the weight of dt_proj directly"):
        apply(mamba.__class__(mamba.config), LoraStrategyConfig(target_modules=["dt_proj"]))


@pytest.mark.parametrize(
    ("family", "name", "words"),
    [
        ("zamba", "q_proj", "one matrix shared by several layers"),
        ("zamba2", "q_proj", "one matrix shared by several layers"),
        ("laguna", "shared_experts.gate_proj", "transformers renames"),
    ],
)
def test_matrices_whose_adapters_would_be_lost_or_summed_get_none(family: str, name: str, words: str) -> None:
    with pytest.raises(ValueError, match=rf"'{name}': .*{words}.*; remove it"):
        apply(tiny_families.build(family), LoraStrategyConfig(target_modules=[name]))
    reach = find_reach(apply(tiny_families.build(family), LoraStrategyConfig()))
    assert any(words in line for line in reach.lines())
    assert not any(name in matrix.name for matrix in reach.adapted)
