"""Exports of several families, strategies and stages: plain transformers and plain peft give the engine's losses."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.families import family_model
from tests.integration import zero_cases
from tests.integration.test_export import losses_of
from tests.integration.zero_cases import Case, training_of
from tests.integration.zero_processes import processes
from tests.soak import few

LAST = 4
FULL: dict[str, Any] = {"type": "full"}
LORA: dict[str, Any] = {"type": "lora", "rank": 4, "alpha": 64.0}
HEAD, EMBED = {"target_modules": ["lm_head"]}, {"target_modules": ["embed_tokens"]}
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    **{f"deepseek_v3, full, {stage}": ("deepseek_v3", stage, FULL) for stage in (0, 1, 2, 3)},
    **{f"deepseek_v3, lora, {stage}": ("deepseek_v3", stage, LORA) for stage in (0, 3)},
    **{f"gpt_oss, {s['type']}, {stage}": ("gpt_oss", stage, s) for s in (FULL, LORA) for stage in (0, 3)},
    **{f"mixtral, lora, {stage}": ("mixtral", stage, LORA) for stage in (0, 2, 3)},
    "gpt2, lora, 3": ("gpt2", 3, LORA),
    **{f"tied, lm_head, {stage}": ("llama, tied", stage, LORA | HEAD) for stage in (0, 3)},
    **{f"tied, embed_tokens, {stage}": ("llama, tied", stage, LORA | EMBED) for stage in (0, 3)},
    "tied, both, 3": ("llama, tied", 3, LORA | {"target_modules": ["lm_head", "embed_tokens"]}),
    "gpt2, wte": ("gpt2", 0, LORA | {"target_modules": ["wte", "c_attn"]}),
    "qwen2, lm_head": ("qwen2, tied", 2, LORA | HEAD),
    **{
        f"tied, saved head, {stage}": ("llama, tied", stage, LORA | {"modules_to_save": ["lm_head"]})
        for stage in (0, 3)
    },
    "tied, saved embeddings, 3": ("llama, tied", 3, LORA | {"modules_to_save": ["embed_tokens"]}),
    **{f"rslora, {stage}": ("llama", stage, LORA | {"use_rslora": True}) for stage in (0, 3)},
    **{f"dora, {stage}": ("llama", stage, LORA | {"use_dora": True}) for stage in (0, 3)},
    "dora, gpt2, 3": ("gpt2", 3, LORA | {"use_dora": True}),
    **{
        f"patterns, {stage}": (
            "llama",
            stage,
            LORA | {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 7}, "alpha_pattern": {"o_proj": 128.0}},
        )
        for stage in (0, 3)
    },
}

IN_FOUR_BITS: dict[str, tuple[str, int, dict[str, Any]]] = {
    **{f"qlora, {stage}": ("llama, wide", stage, LORA | {"use_qlora": True}) for stage in (2, 1, 0)},
    "qlora, dora": ("llama, wide", 2, LORA | {"use_qlora": True, "use_dora": True}),
    "qlora, tied head": ("llama, wide, tied", 2, LORA | {"use_qlora": True, "modules_to_save": ["lm_head"]}),
}


def partitioned(stage: int, folder: Path, **changes: Any) -> dict[str, Any]:
    """The tests' training; at stage 3 with every parameter in parts, where DeepSpeed would keep small ones whole."""
    if stage != 3:
        return training_of(stage, **changes)
    file = folder / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}))
    return training_of(3, **changes) | {"deepspeed": {"config": str(file)}}


def attention_of(family: str) -> Literal["sdpa", "eager"]:
    return "eager" if family == "gpt_oss" else "sdpa"


def in_four_bits(family: str) -> Any:
    """A base model as transformers itself quantises it, with the settings of the QLoRA paper."""
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        family_model(family), quantization_config=settings, attn_implementation=attention_of(family)
    )
    for module in model.modules():  # bitsandbytes cannot repack such small matrices for the CPU
        module.support_avx512bf16_for_cpu = False
    return model


@pytest.mark.parametrize("name", [*few(CASES, 5), *few(IN_FOUR_BITS, 1)])
def test_a_reloaded_export_has_the_losses_of_the_engine(name: str, tmp_path: Path) -> None:
    family, stage, strategy = (CASES | IN_FOUR_BITS)[name]
    folder = tmp_path / "model"
    training = partitioned(stage, tmp_path, strategy=strategy)
    case = Case(family_model(family), training, last_step=LAST, export={LAST: folder}, attention=attention_of(family))
    trained = processes(2).run(zero_cases.train, case)[0]
    before = losses_of(
        AutoModelForCausalLM.from_pretrained(family_model(family), attn_implementation="eager"), alone=True
    )
    assert before != pytest.approx(trained["final_alone"], abs=1e-3)
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=attention_of(family), output_loading_info=True
    )
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert losses_of(model, alone=True) == pytest.approx(trained["final_alone"], abs=2e-5)
    original = AutoModelForCausalLM.from_pretrained(family_model(family), attn_implementation=attention_of(family))
    for key, buffer in original.named_buffers():  # those that are kept in the file are not the defaults
        assert torch.equal(model.get_buffer(key), buffer), key
    if strategy["type"] == "lora":
        from peft import PeftModel

        base = in_four_bits(family) if strategy.get("use_qlora") else original
        assert losses_of(PeftModel.from_pretrained(base, folder / "adapter"), alone=True) == pytest.approx(
            trained["final_alone"], abs=2e-5
        )
        moved = [key for key, (master, *_) in trained["masters"].items() if "lora_B" in key or "embedding_A" in key]
        assert all(trained["masters"][key][0].abs().max() > 0 for key in moved if "embedding_A" not in key)


def test_untied_only_where_an_adapter_is_on_one_end(tmp_path: Path) -> None:
    for name, strategy, tied in (("head", LORA | HEAD, False), ("layers", LORA, True)):
        case = Case(
            family_model("llama, tied"), training_of(0, strategy=strategy), last_step=1, export={1: tmp_path / name}
        )
        processes(2).run(zero_cases.train, case)
        written = json.loads((tmp_path / name / "config.json").read_text())
        assert written["tie_word_embeddings"] is tied
        assert ("lm_head.weight" in load_file(tmp_path / name / "model.safetensors")) is not tied


@pytest.mark.parametrize("stage", few([3, 0], 1))
@pytest.mark.parametrize(
    "settings", few([{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"rank_pattern": {"q_proj": 2}}], 1)
)
def test_every_kind_of_adapter_goes_on_from_a_checkpoint(settings: dict[str, Any], stage: int, tmp_path: Path) -> None:
    training = partitioned(stage, tmp_path, strategy=LORA | settings)
    model = family_model("llama, tied")
    whole = processes(2).run(zero_cases.train, Case(model, training, last_step=6, save={3: tmp_path / "c"}))[0]
    resumed = processes(2).run(
        zero_cases.train,
        Case(model, training, first_step=4, last_step=6, load=tmp_path / "c" / "step-00000003"),
    )[0]
    assert resumed["losses"] == whole["losses"][3:] and resumed["final"] == whole["final"]


@pytest.mark.parametrize("family", few(["gpt_oss", "deepseek_v3"], 1))
def test_activation_checkpointing_changes_no_loss_of_experts_with_adapters(family: str, tmp_path: Path) -> None:
    results = []
    for is_on in (False, True):
        training = partitioned(3, tmp_path, strategy=LORA, activation_checkpointing=is_on)
        case = Case(family_model(family), training, last_step=2, attention=attention_of(family))
        results.append(processes(2).run(zero_cases.train, case)[0]["losses"])
    assert results[1] == [pytest.approx(losses, abs=1e-5) for losses in results[0]]


def test_the_adapter_names_its_base_and_revision(tmp_path: Path) -> None:
    case = Case(
        family_model("llama"), training_of(0, strategy=LORA), last_step=1, export={1: tmp_path / "m"}, revision="v1"
    )
    processes(2).run(zero_cases.train, case)
    written = json.loads((tmp_path / "m" / "adapter" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == family_model("llama").name
    assert written["revision"] == "v1"
    for path in (tmp_path / "m").rglob("*"):
        if path.is_file():
            assert str(family_model("llama").parent).encode() not in path.read_bytes(), path.name
