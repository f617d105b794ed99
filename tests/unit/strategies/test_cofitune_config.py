"""Layer ranges, module sets, architectures: what a configuration of CoFiTune selects, before and on a model."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from workers.strategies.cofitune import CoFiTuneConfig, apply, check_model, trained_layers
from workers.strategies.cofitune.architectures import ARCHITECTURES, Sizes, row_modules, trained_parameters

GATED = {"num_key_value_heads": 2, "intermediate_size": 20}
SIZES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(ARCHITECTURES, GATED),
    **{name: {**GATED, "head_dim": 6} for name in ("qwen3", "gemma", "gemma2", "gemma3_text")},
    "gpt2": {"n_inner": 20},
    "gpt_neox": {"intermediate_size": 20},
    "opt": {"ffn_dim": 20, "word_embed_proj_dim": 16},
}


def build(model_type: str, **changes: Any) -> Any:
    """A model of four layers, four heads and hidden size 16."""
    torch.manual_seed(0)
    common = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
    }
    config = AutoConfig.for_model(model_type, **{**common, **SIZES[model_type], **changes})
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("layers", "num_layers", "first", "last"),
    [
        ((0, 0.5), 32, 0, 15),
        ((0, 0.5), 40, 0, 19),
        ((0.25, 0.75), 32, 8, 23),
        ((0.25, 0.75), 40, 10, 29),
        ((0.5, 1), 32, 16, 31),
        ((0.5, 1), 40, 20, 39),
        ((0, 0.25), 32, 0, 7),
        ((0, 0.25), 40, 0, 9),
        ((0.25, 0.5), 32, 8, 15),
        ((0.25, 0.5), 40, 10, 19),
        ((0.25, 0.5), 60, 15, 29),
        ((0.5, 0.75), 32, 16, 23),
        ((0.5, 0.75), 40, 20, 29),
        ((0.75, 1), 32, 24, 31),
        ((0.75, 1), 40, 30, 39),
        ((0, 1), 60, 0, 59),
        ((0.25, 0.5), 3, 0, 0),
        ((0.29, 0.58), 100, 29, 57),  # 0.29 * 100 and 0.58 * 100 are below 29 and 58 in floating point
    ],
)
def test_layer_ranges_are_those_of_the_paper(
    layers: tuple[float, float], num_layers: int, first: int, last: int
) -> None:
    assert trained_layers(layers, num_layers) == range(first, last + 1)


def test_halves_of_a_range_are_the_range() -> None:
    for num_layers in range(1, 61):
        if num_layers >= 4:
            quarters = [trained_layers((q / 4, (q + 1) / 4), num_layers) for q in range(4)]
            assert [layer for quarter in quarters for layer in quarter] == list(range(num_layers))


def test_a_range_without_a_layer_is_an_error_that_names_one_with() -> None:
    with pytest.raises(ValueError, match=r"\[0\.3, 0\.45\] of 2 layers contains no layer; \[0\.0, 0\.5\] would be"):
        trained_layers((0.3, 0.45), 2)
    with pytest.raises(ValueError, match=r"\[0\.334, 0\.667\] would be layer 2"):
        trained_layers((0.5, 0.6), 3)
    assert trained_layers((0.334, 0.667), 3) == range(1, 2)
    with pytest.raises(ValueError, match=r"\[0\.5, 0\.25\] is empty"):
        CoFiTuneConfig(layers=(0.5, 0.25))


def test_sets_stand_for_their_modules_each_once() -> None:
    assert CoFiTuneConfig().trained_modules == ["up", "down"]
    assert CoFiTuneConfig(modules=["attention", "o", "q", "feed_forward"]).trained_modules == [
        *("q", "k", "v", "o"),
        *("up", "down"),
    ]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_exactly_the_chosen_modules_of_the_chosen_layers_train(model_type: str) -> None:
    model = build(model_type)
    config = CoFiTuneConfig(layers=(0.25, 0.75), modules=["attention", "feed_forward"])
    apply(model, config)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(any(f".{layer}." in name for layer in (1, 2)) for name in trained)
    assert not any("norm" in name or "ln_" in name for name in trained)
    paths = {ARCHITECTURES[model_type].modules[module] for module in ("q", "k", "v", "up", "down")}
    assert {name.partition(".1.")[2].rpartition(".")[0] for name in trained if ".1." in name} == paths
    for part in trained_parameters(model, config):
        assert len(part.module_R) == part.parameter.shape[part.axis]


def test_rows_of_shared_matrices_belong_to_the_right_module_and_head() -> None:
    sizes = Sizes(num_heads=2, num_kv_heads=1, head_dim=2, intermediate=3, hidden=4)
    modules, units = row_modules(ARCHITECTURES["phi3"], "self_attn.qkv_proj", sizes)
    assert "".join(modules) == "qqqqkkvv"
    assert units.tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    modules, units = row_modules(ARCHITECTURES["phi3"], "mlp.gate_up_proj", sizes)
    assert modules.tolist() == ["gate"] * 3 + ["up"] * 3
    assert units.tolist() == [0, 1, 2, 0, 1, 2]
    sizes = Sizes(num_heads=2, num_kv_heads=2, head_dim=2, intermediate=3, hidden=4)
    modules, units = row_modules(ARCHITECTURES["gpt_neox"], "attention.query_key_value", sizes)
    assert "".join(modules) == "qqkkvvqqkkvv"
    assert units.tolist() == [0] * 6 + [1] * 6


def logits_with_doubled(model_type: str, module: str, weight_only: bool = False) -> torch.Tensor:
    """Logits of a model whose rows of this module are twice as large in all layers."""
    model = build(model_type, initializer_range=0.2).eval()
    with torch.no_grad():
        for part in trained_parameters(model, CoFiTuneConfig(layers=(0, 1), modules=[module])):  # type: ignore[list-item]
            if part.parameter.ndim == 2 or not weight_only:
                rows = torch.from_numpy(np.flatnonzero(part.is_trained_R))
                doubled = 2 * part.parameter.index_select(part.axis, rows)
                part.parameter.index_copy_(part.axis, rows, doubled)
        return model(input_ids=torch.arange(2, 10)[None], use_cache=False).logits


@pytest.mark.parametrize("model_type", ["llama", "phi3", "gpt2", "gpt_neox"])
def test_rows_of_a_module_are_what_the_model_takes_them_for(model_type: str) -> None:
    """Attention scores are linear in q and in k, a head's output in v and in o, and the product with the gate in up."""
    pairs = [("q", "k"), ("v", "o")] + [("up", "down")] * ("gate" in ARCHITECTURES[model_type].modules)
    doubled = {module: logits_with_doubled(model_type, module, module in ("o", "down")) for module in sum(pairs, ())}
    for one, other in pairs:
        assert torch.allclose(doubled[one], doubled[other], atol=1e-5), (one, other)
    for (one, _), (other, _) in itertools.pairwise(pairs):
        assert not torch.allclose(doubled[one], doubled[other], atol=1e-3), (one, other)


def test_an_unknown_model_or_an_absent_module_is_an_error_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"module names of 'mamba'.*it knows llama, .*architectures\.py"):
        check_model(CoFiTuneConfig(), {"model_type": "mamba", "num_hidden_layers": 4})
    with pytest.raises(ValueError, match=r"training\.strategy\.modules: gpt2 models have no gate; they have q, k"):
        check_model(CoFiTuneConfig(modules=["gate"]), {"model_type": "gpt2", "n_layer": 4})
    with pytest.raises(ValueError, match="of 2 layers contains no layer"):
        check_model(
            CoFiTuneConfig(layers=(0.1, 0.2)),
            {"model_type": "x", "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 2}},
        )
    check_model(CoFiTuneConfig(layers=(0.25, 0.5)), {"model_type": "llama", "num_hidden_layers": 32})
