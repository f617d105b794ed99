"""Which kernels a model may run with, in what words another is refused, and that only a right one is used."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from benchmarks.tiny_families import build
from tests.unit.model.test_base_folder import model_of, write_model
from tests.unit.model.test_isolation import forward_of, packed_row
from workers.config.model import ModelConfig
from workers.model.attention import attention_kernels, plain_kernel
from workers.model.kernel_choice import prove_kernel
from workers.model.loading import load_model

BOTH_FLASH = ("flash-attn", "flash-attn-3")


def model(**settings: Any) -> ModelConfig:
    return ModelConfig(path="owner/name", **settings)


def kernels(on_gpu: bool = True, family: Any = LlamaForCausalLM, described: Any = None, **settings: Any) -> list[str]:
    return attention_kernels(model(**settings), family, described or LlamaConfig(), on_gpu)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make exactly these packages look installed."""

    def install(*names: str) -> None:
        def distribution(name: str) -> str:
            if name not in names:
                raise PackageNotFoundError(name)
            return name

        monkeypatch.setattr("workers.model.attention.distribution", distribution)

    install()
    return install


def test_auto_tries_what_family_precision_and_machine_have_fastest_first(install: Any) -> None:
    assert model().attention == "auto"
    assert kernels(on_gpu=False) == ["sdpa"]
    assert kernels() == ["flex_attention", "sdpa"]
    install(*BOTH_FLASH)
    assert kernels(on_gpu=False) == ["sdpa"]
    assert kernels() == ["flash_attention_3", "flash_attention_2", "flex_attention", "sdpa"]
    assert kernels(dtype="float32") == ["flex_attention", "sdpa"]
    assert kernels(family=GptOssForCausalLM, described=GptOssConfig()) == ["flex_attention", "eager"]
    assert kernels(family=Mamba2ForCausalLM, described=Mamba2Config()) == ["eager"]
    install("flash-attn-4", "kernels")  # the one shares its module with flash-attn, the other would download it
    assert kernels() == ["flex_attention", "sdpa"]


def test_auto_leaves_out_what_would_leave_out_dropout(install: Any) -> None:
    install(*BOTH_FLASH)
    assert kernels(described=LlamaConfig(attention_dropout=0.1)) == ["flash_attention_2", "sdpa"]
    with pytest.raises(ValueError, match=r"flash_attention_3 .* has no dropout, .* sets attention_dropout: 0\.1"):
        kernels(described=LlamaConfig(attention_dropout=0.1), attention="flash_attention_3")


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "gemma2", "bloom", "opt"])
def test_a_model_is_loaded_with_what_transformers_takes_by_itself(tmp_path: Path, family: str) -> None:
    folder = write_model(tmp_path / "base", family)
    by_itself = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).config._attn_implementation
    assert load_model(model_of(folder)).config._attn_implementation == by_itself


def test_what_is_asked_for_is_taken_or_refused_with_what_works(install: Any) -> None:
    assert kernels(on_gpu=False, attention="sdpa") == ["sdpa"]
    assert kernels(on_gpu=False, attention="eager") == ["eager"]
    assert plain_kernel(model(attention="eager"), LlamaForCausalLM) == "eager"
    assert plain_kernel(model(attention="flash_attention_2"), LlamaForCausalLM) == "sdpa"
    with pytest.raises(ValueError, match=r"^model\.attention: sdpa .*GptOss.* use eager, or auto"):
        kernels(attention="sdpa", family=GptOssForCausalLM, described=GptOssConfig())
    for name in ("flash_attention_2", "flash_attention_3", "flex_attention"):
        with pytest.raises(ValueError, match=rf"^model\.attention: {name} .*needs a GPU .* use sdpa or eager, or auto"):
            kernels(on_gpu=False, attention=name)
    with pytest.raises(ValueError, match="flash-attn-3 is not installed"):
        kernels(attention="flash_attention_3")
    with pytest.raises(ValueError, match="flash-attn is not installed"):
        kernels(attention="flash_attention_2")
    for package in ("flash-attn", "kernels"):
        install(package)
        assert kernels(attention="flash_attention_2") == ["flash_attention_2"]
        with pytest.raises(ValueError, match=r"model\.dtype is float32"):
            kernels(attention="flash_attention_2", dtype="float32")
    for family in (GptOssForCausalLM, Mamba2ForCausalLM):  # the first has flash kernels of its own only
        with pytest.raises(ValueError, match=rf"{family.__name__} has no such kernel .* use eager"):
            kernels(attention="flash_attention_2", family=family)


def _right(*given: Any, **named: Any) -> Any:
    return sdpa_attention_forward(*given, **named)


def _wrong(module: Any, query: torch.Tensor, *given: Any, **named: Any) -> Any:
    """The planted fault: a part of the scores is left out, as sinks or caps may be."""
    return sdpa_attention_forward(module, query * 0.5, *given, **named)


def _crashing(*given: Any, **named: Any) -> Any:
    raise RuntimeError("no kernel image is available for execution on the device")


def _only_without_dropout(module: Any, *given: Any, dropout: float = 0.0, **named: Any) -> Any:
    if dropout > 0:
        raise ValueError("does not support dropout")
    return sdpa_attention_forward(module, *given, **named)


def _of_whole_rows(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **named: Any) -> Any:
    """The planted fault: examples in a row see each other, in whatever way they are given."""
    return sdpa_attention_forward(module, query, key, value, None, is_causal=True, **named)


STAND_INS = {
    "flash_attention_3": _crashing,
    "flash_attention_2": _wrong,
    "flex_attention": _right,
    "whole_rows": _of_whole_rows,
    "without_dropout": _only_without_dropout,
}


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of these names that run on the CPU, whose masks are those of sdpa."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

    for name, function in STAND_INS.items():
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, name, function)
        monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._local_mapping, name, sdpa_mask)
    # transformers would look for the packages.
    adjust = "_check_and_adjust_attn_implementation"
    monkeypatch.setattr(PreTrainedModel, adjust, lambda self, name, *rest, **more: name or "sdpa")


def test_the_first_kernel_that_is_right_is_set_and_the_others_told(stand_ins: None) -> None:
    llama = build("llama")
    forward = forward_of(llama)
    found = prove_kernel(forward, packed_row(), ["flash_attention_3", "flash_attention_2", "flex_attention", "sdpa"])
    assert (found.attention, llama.config._attn_implementation) == ("flex_attention", "flex_attention")
    assert (found.way, forward.way) == ("positions", "positions")
    assert list(found.refused_attention) == ["flash_attention_3", "flash_attention_2"]
    assert "it fails (RuntimeError: no kernel image" in found.refused_attention["flash_attention_3"]
    assert "an example's loss differs by" in found.refused_attention["flash_attention_2"]
    assert "; attention: flex_attention; not flash_attention_3: it fails" in str(found)


def test_a_kernel_that_mixes_packed_examples_gives_way_to_the_plain_one(stand_ins: None) -> None:
    llama = build("llama")
    found = prove_kernel(forward_of(llama), packed_row(), ["whole_rows", "sdpa"])
    assert (found.attention, llama.config._attn_implementation, found.way) == ("sdpa", "sdpa", "positions")
    assert found.refused_attention == {"whole_rows": "packed examples would have to be computed separately"}


def test_without_packed_examples_a_kernel_is_measured_too(stand_ins: None) -> None:
    assert prove_kernel(forward_of(build("llama")), None, ["whole_rows", "sdpa"]).attention == "whole_rows"
    found = prove_kernel(forward_of(build("llama")), None, ["flash_attention_2", "sdpa"])
    assert (found.attention, list(found.refused_attention)) == ("sdpa", ["flash_attention_2"])


def test_a_kernel_that_fails_only_with_dropout_is_found_out(stand_ins: None) -> None:
    gpt2 = build("gpt2")
    for block in gpt2.transformer.h:
        block.attn.attn_dropout.p = 0.3
    found = prove_kernel(forward_of(gpt2), packed_row(), ["without_dropout", "sdpa"])
    assert found.attention == "sdpa"
    assert "does not support dropout" in found.refused_attention["without_dropout"]


def test_the_only_kernel_that_may_be_used_must_be_right(stand_ins: None) -> None:
    with pytest.raises(ValueError, match=r"^model\.attention: flash_attention_2 is not right .*: an example"):
        prove_kernel(forward_of(build("llama")), packed_row(), ["flash_attention_2"])
    assert prove_kernel(forward_of(build("llama")), packed_row(), ["flex_attention"]).attention == "flex_attention"


def test_a_kernel_that_is_wrong_on_another_rank_is_not_used_here(stand_ins: None) -> None:
    answers = iter([1.0])
    found = prove_kernel(
        forward_of(build("llama")), packed_row(), ["flex_attention", "sdpa"], lambda mine: next(answers, mine)
    )
    assert found.attention == "sdpa"
    assert found.refused_attention == {"flex_attention": "it is not right on another rank"}


def test_the_plain_kernel_alone_is_not_compared_with_itself() -> None:
    passes: list[int] = []
    llama = build("llama")
    llama.register_forward_hook(lambda *given: passes.append(1))
    found = prove_kernel(forward_of(llama), None, ["sdpa"])
    assert (found.attention, found.refused_attention, passes) == ("sdpa", {}, [])
