"""QLoRA: which matrices are stored in 4 bits, how much memory that takes, and what is refused."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from benchmarks import tiny_families
from workers.config.training import TrainingConfig
from workers.strategies.lora import LoraStrategyConfig, apply
from workers.strategies.lora.quantised import BYTES_PER_WEIGHT, computed_weights, quantised_layers


def adapted(family: str, **settings: Any) -> Any:
    return apply(tiny_families.build(family), LoraStrategyConfig(use_qlora=True, rank=2, **settings))


def layers_in_four_bits(model: Any) -> set[str]:
    return {name for name, _ in quantised_layers(model)}


def linear_layers(family: str) -> set[str]:
    """Of the decoder, found by their class, with whole blocks of inputs."""
    layers = [(n, m) for n, m in tiny_families.build(family).named_modules() if type(m) is torch.nn.Linear]
    return {name for name, m in layers if name != "lm_head" and m.in_features % 64 == 0}


def test_every_linear_layer_but_the_head_is_stored_in_four_bits() -> None:
    model = adapted("llama")
    assert layers_in_four_bits(model) == linear_layers("llama")
    for name, layer in quantised_layers(model):
        assert layer.weight.dtype == torch.uint8 and not layer.weight.requires_grad, name
        assert layer.weight.numel() * 2 == layer.in_features * layer.out_features
    assert not any("down_proj" in name for name in layers_in_four_bits(model))  # which has 96 inputs
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_layers_that_are_not_called_or_are_trained_in_full_keep_their_weights() -> None:
    mamba = layers_in_four_bits(adapted("mamba2"))  # passes out_proj.weight on to its kernels
    assert mamba == {name for name in linear_layers("mamba2") if not name.endswith("out_proj")} != set()
    saved = layers_in_four_bits(adapted("llama", modules_to_save=["up_proj"]))
    assert saved == {name for name in linear_layers("llama") if not name.endswith("up_proj")}


def test_a_model_without_plain_linear_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^training\.strategy\.use_qlora: this model has no plain linear layer"):
        adapted("gpt2")  # which keeps its matrices transposed, in layers of another class


def test_passes_compute_with_the_weights_that_are_exported() -> None:
    """Of a plain model with these weights, to the last bit."""
    ids = torch.arange(3, 40)[None]
    for dtype in (torch.float32, torch.bfloat16):
        model = apply(tiny_families.build("llama").to(dtype), LoraStrategyConfig(use_qlora=True, rank=2))
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {dtype}
        plain = tiny_families.build("llama").to(dtype)
        original = {name: p.detach().clone() for name, p in plain.named_parameters()}
        with torch.no_grad():
            for name, weight in computed_weights(model):
                plain.get_parameter(name).copy_(weight)
                error = (weight - original[name]).float().square().mean().sqrt()
                assert 0.02 < error / original[name].float().std() < 0.12  # of 16 values for a normal distribution
            expected = plain.eval()(input_ids=ids, use_cache=False).logits
            assert torch.equal(model.eval()(input_ids=ids, use_cache=False).logits, expected)


def test_the_estimate_counts_what_bitsandbytes_stores() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=1, **sizes)).bfloat16()
    num_weights = num_bytes = 0
    for _, layer in quantised_layers(apply(model, LoraStrategyConfig(use_qlora=True))):
        state = layer.weight.quant_state
        kept = (layer.weight, state.absmax, state.state2.absmax)
        num_bytes += sum(tensor.numel() * tensor.element_size() for tensor in kept)
        num_weights += layer.in_features * layer.out_features
    assert num_weights == 4 * 512 * 512 + 3 * 512 * 1024
    assert num_bytes == pytest.approx(BYTES_PER_WEIGHT * num_weights, rel=0.001)


def test_stage_three_is_refused_before_anything_is_loaded() -> None:
    settings = {"max_steps": 1, "strategy": {"type": "lora", "use_qlora": True}}
    assert TrainingConfig.model_validate(settings | {"deepspeed": {"zero_stage": 2}})
    with pytest.raises(ValidationError, match=r"use_qlora: not at deepspeed.zero_stage 3.* use stage 0, 1 or 2"):
        TrainingConfig.model_validate(settings | {"deepspeed": {"zero_stage": 3}})


def test_a_missing_package_is_told_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.strategies.lora.quantised.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"use_qlora: .*bitsandbytes is not installed; pip install 'raymix\[qlora\]'"):
        adapted("llama")
