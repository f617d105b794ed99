"""Which kernel a model runs with, and in what words another is refused."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, GptOssForCausalLM, LlamaForCausalLM, Mamba2ForCausalLM

from tests.unit.model.test_base_folder import model_of, write_model
from workers.config.model import ModelConfig
from workers.model.base_config import resolve_attention
from workers.model.loading import load_model


def model(**settings: Any) -> ModelConfig:
    return ModelConfig(path="owner/name", **settings)


def test_auto_is_the_best_that_the_family_has() -> None:
    assert model().attention == "auto"
    assert resolve_attention(model(), LlamaForCausalLM, on_gpu=True) == "sdpa"
    assert resolve_attention(model(), GptOssForCausalLM, on_gpu=True) == "eager"
    assert resolve_attention(model(), Mamba2ForCausalLM, on_gpu=True) == "eager"


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "gemma2", "bloom", "opt"])
def test_auto_is_what_transformers_takes_by_itself(tmp_path: Path, family: str) -> None:
    folder = write_model(tmp_path / "base", family)
    by_itself = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).config._attn_implementation
    assert load_model(model_of(folder)).config._attn_implementation == by_itself


def test_what_is_asked_for_is_taken_or_refused_with_what_works(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_attention(model(attention="sdpa"), LlamaForCausalLM, on_gpu=False) == "sdpa"
    assert resolve_attention(model(attention="eager"), LlamaForCausalLM, on_gpu=False) == "eager"
    with pytest.raises(ValueError, match=r"^model\.attention: sdpa .*GptOss.* use eager, or auto, which is eager"):
        resolve_attention(model(attention="sdpa"), GptOssForCausalLM, on_gpu=False)
    flash = model(attention="flash_attention_2")
    monkeypatch.setattr("workers.model.base_config.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs a GPU .* use sdpa or eager, or auto, which is sdpa"):
        resolve_attention(flash, LlamaForCausalLM, on_gpu=False)
    with pytest.raises(ValueError, match="flash-attn is not installed"):
        resolve_attention(flash, LlamaForCausalLM, on_gpu=True)
    monkeypatch.setattr("workers.model.base_config.find_spec", lambda name: name == "flash_attn")
    assert resolve_attention(flash, LlamaForCausalLM, on_gpu=True) == "flash_attention_2"
    with pytest.raises(ValueError, match=r"model\.dtype is float32"):
        resolve_attention(model(attention="flash_attention_2", dtype="float32"), LlamaForCausalLM, on_gpu=True)
    for family in (GptOssForCausalLM, Mamba2ForCausalLM):  # the first has flash kernels of its own only
        with pytest.raises(ValueError, match=rf"{family.__name__} has no such kernel .* use eager"):
            resolve_attention(flash, family, on_gpu=True)
