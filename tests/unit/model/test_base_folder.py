"""Base folders: which are taken, which are refused and in what words; plain transformers says what is in order."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from workers.config.model import ModelConfig
from workers.model.loading import check_model, load_model

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
ROUTED = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
LINEAR = {
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "gemma3_text": {"layer_types": ["full_attention", "sliding_attention"]},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "gpt_neox": {},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "bloom": {"n_layer": 2, "n_head": 2},
    "mamba2": {"num_heads": 4, "state_size": 4, "n_groups": 1, "expand": 2},
    "mixtral": {"num_local_experts": 3},
    "qwen3_moe": EXPERTS,
    "gpt_oss": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "deepseek_v3": {**LATENT, **ROUTED, "num_key_value_heads": 2, "head_dim": 4, "first_k_dense_replace": 1},
    "glm4_moe": {**ROUTED, "first_k_dense_replace": 1, "n_shared_experts": 1},
    "qwen3_next": {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 8},
}


def write_model(folder: Path, family: str = "llama", **changes: Any) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(SIZES | FAMILIES.get(family, {})))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, **changes)
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file({name: w.contiguous() for name, w in weights.items()}, file, metadata={"format": "pt"})


def model_of(folder: Path, **settings: Any) -> ModelConfig:
    return ModelConfig(path=str(folder), **({"dtype": "float32"} | settings))


def is_taken_by_transformers(folder: Path) -> bool:
    """Whether plain transformers finds every weight, and a place for every weight."""
    _, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    return not (loading["missing_keys"] or loading["unexpected_keys"] or loading["mismatched_keys"])


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "8KB"}], ids=["one file", "shards"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_in_order_is_taken(tmp_path: Path, family: str, shards: dict[str, Any]) -> None:
    folder = write_model(tmp_path / "base", family, **shards)
    assert is_taken_by_transformers(folder)
    base = check_model(model_of(folder), on_gpu=False)
    assert base is not None and base.num_embeddings == 40 and not base.doubled
    assert all(p.is_meta for p in base.shell.parameters())


def without_prefix(weights: dict[str, torch.Tensor]) -> None:
    """As in GPT-2's own file of 2019."""
    for name in list(weights):
        weights[name.removeprefix("transformer.")] = weights.pop(name)
    weights["h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
    weights["h.1.attn.masked_bias"] = torch.tensor(-1e4)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("gpt2", without_prefix),
        ("llama", lambda w: w.update({"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4)})),
        ("gpt_neox", lambda w: w.update({"gpt_neox.layers.1.attention.masked_bias": torch.tensor(-1e9)})),
        ("deepseek_v3", lambda w: w.update({"model.layers.61.eh_proj.weight": torch.ones(4, 4)})),
        ("glm4_moe", lambda w: w.update({"model.layers.46.eh_proj.weight": torch.ones(4, 4)})),
        ("qwen3_next", lambda w: w.update({"mtp.fc.weight": torch.ones(4, 4)})),
        ("qwen2", lambda w: w.update({"lm_head.weight": w.pop("model.embed_tokens.weight")})),
    ],
)
def test_what_a_family_leaves_out_on_purpose_is_no_fault(tmp_path: Path, family: str, change: Any) -> None:
    folder = write_model(tmp_path / "base", family)
    change_weights(folder, change)
    assert check_model(model_of(folder), on_gpu=False) is not None
    load_model(model_of(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_without_a_place_and_places_without_a_weight_are_errors(tmp_path: Path, family: str) -> None:
    folder = write_model(tmp_path / "base", family)
    last = max(name for name in load_file(folder / "model.safetensors") if "norm" in name or "ln_" in name)
    change_weights(folder, lambda w: w.update({f"{last}.scale": torch.ones(3)}))
    assert not is_taken_by_transformers(folder)
    with pytest.raises(ValueError, match=rf"{folder}/model.safetensors: 1 weights have no place .* {last}\.scale"):
        check_model(model_of(folder), on_gpu=False)
    change_weights(folder, lambda w: (w.pop(f"{last}.scale"), w.pop(last)))
    assert not is_taken_by_transformers(folder)
    with pytest.raises(
        ValueError, match=rf"{folder}/model.safetensors: 1 weights are missing from the files, first {last}"
    ):
        check_model(model_of(folder), on_gpu=False)


def cut(file: Path, num_bytes: int) -> None:
    file.write_bytes(file.read_bytes()[:-num_bytes])


def change_header(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    change(header)
    written = json.dumps(header).encode()
    file.write_bytes(len(written).to_bytes(8, "little") + written + content[end:])


def move_below(folder: Path) -> None:
    (folder / "weights").mkdir()
    (folder / "model.safetensors").rename(folder / "weights" / "model.safetensors")


def become(family: str) -> Callable[[Path], Any]:
    return lambda folder: AutoConfig.for_model(family).save_pretrained(folder)


def write_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "Qwen/Qwen2.5-0.5B"}')


def quantise(settings: dict[str, Any]) -> Callable[[Path], None]:
    return lambda folder: change_config(folder, quantization_config=settings)


NORM = "model.norm.weight"
WEIGHTS = "model.safetensors"
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "fewer layers": (lambda f: change_config(f, num_hidden_layers=1), r"safetensors: 9 weights have no place .*\.1\."),
    "more layers": (
        lambda f: change_config(f, num_hidden_layers=3),
        "safetensors: 9 weights are missing from the files",
    ),
    "shapes": (
        lambda f: change_config(f, intermediate_size=32),
        r"safetensors: 6 weights have different shapes .*down_proj.weight: \(16, 24\) in the file, \(16, 32\) in",
    ),
    "vocabulary": (lambda f: change_config(f, vocab_size=41), r"lm_head.weight: \(40, 16\) in the file, \(41, 16\)"),
    "contradiction": (
        lambda f: change_config(f, num_attention_heads=3),
        "json does not load: .*attention heads",
    ),
    "another type": (lambda f: change_config(f, hidden_size="wide"), "config.json does not load: .*hidden_size"),
    "cut": (lambda f: cut(f / WEIGHTS, 9), r"model.safetensors has [\d,]+ bytes but its header describes .* truncated"),
    "cut in the header": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:99]), "after 99 bytes"),
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), r"model\.safetensors is truncated in its header"),
    "too long": (lambda f: (f / WEIGHTS).open("ab").write(b"more"), "too long"),
    "no header": (lambda f: (f / WEIGHTS).write_bytes(b"\x93" * 500), r"is not a safetensors file: .*x93"),
    "torn header": (lambda f: (f / WEIGHTS).write_bytes(b"\x04" + bytes(7) + b"{{{{"), "has a damaged header"),
    "shape beyond its bytes": (
        lambda f: change_header(f / WEIGHTS, lambda h: h[NORM].update(shape=[99])),
        "has a damaged header .*invalid shape",
    ),
    "a pointer": (lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "8-bit floats": (
        lambda f: change_weights(f, lambda w: w.update({NORM: w[NORM].to(torch.float8_e4m3fn)})),
        rf"{NORM} is quantised \(F8_E4M3\)",
    ),
    "gptq": (quantise({"quant_method": "gptq", "bits": 4}), r"quantization_config says .* quantised \(gptq\)"),
    "awq": (quantise({"quant_method": "awq"}), r"config.json: .* quantised \(awq\)"),
    "fp8": (quantise({"quant_method": "fp8"}), r"config.json: .* quantised \(fp8\)"),
    "mxfp4": (quantise({"quant_method": "mxfp4"}), r"config.json: .* quantised \(mxfp4\)"),
    "bitsandbytes": (quantise({"load_in_4bit": True}), "config.json: .* quantised"),
    "no type": (lambda f: change_config(f, model_type=None), r"config\.json has no model_type"),
    "unknown type": (lambda f: change_config(f, model_type="lamma"), r"config\.json: .* no model_type 'lamma'"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json is not JSON"),
    "no object": (lambda f: (f / "config.json").write_text("[]"), r"config\.json is not a JSON object but a list"),
    "encoder": (become("bert"), r"model_type 'bert'\) is an encoder"),
    "encoder-decoder": (become("t5"), r"model_type 't5'\) is an encoder-decoder"),
    "a picture's model": (become("vit"), "cannot generate text"),
    "adapter": (write_adapter, r"is an adapter .*Qwen/Qwen2\.5-0\.5B"),
    "below": (move_below, "but weights/ does"),
    "another name": (lambda f: (f / WEIGHTS).rename(f / "llama.safetensors"), r"\(llama\.safetensors\)"),
    "gguf": (lambda f: (f / WEIGHTS).rename(f / "llama.gguf"), r"GGUF \(llama\.gguf\)"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("good") / "base")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_is_told_in_a_line_before_and_at_loading(tmp_path: Path, good: Path, name: str) -> None:
    change, words = BROKEN[name]
    folder = shutil.copytree(good, tmp_path / "base")
    change(folder)
    for attempt in (lambda: check_model(model_of(folder), on_gpu=False), lambda: load_model(model_of(folder))):
        with pytest.raises(ValueError, match=words) as error:
            attempt()
        assert str(error.value).startswith("model.path: ") and str(folder) in str(error.value)
        assert "\n" not in str(error.value)


def test_shards_are_each_looked_at(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "base", max_shard_size="4KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    whole = shards[1].read_bytes()
    cut(shards[1], 1)
    with pytest.raises(ValueError, match=rf"{shards[1]} has .* truncated"):
        check_model(model_of(folder), on_gpu=False)
    shards[1].unlink()
    with pytest.raises(ValueError, match=rf"1 of the {len(shards)} files .*index\.json names .* {shards[1].name}"):
        check_model(model_of(folder), on_gpu=False)
    shards[1].write_bytes(whole)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"index\.json has no weight_map"):
        check_model(model_of(folder), on_gpu=False)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_an_expert_of_another_shape_or_missing_is_named(tmp_path: Path, family: str) -> None:
    folder = write_model(tmp_path / "base", family)
    names = [name for name in load_file(folder / WEIGHTS) if ".experts.1." in name]
    change_weights(folder, lambda w: w.update({names[0]: w[names[0]][:, 1:]}))
    with pytest.raises(ValueError, match=rf"{names[0]} has shape .*, the others of its kind "):
        check_model(model_of(folder), on_gpu=False)
    change_weights(folder, lambda w: w.pop(names[0]))
    with pytest.raises(ValueError, match=r"there are 5 tensors model.*experts.*, but 6|different shapes .*experts"):
        check_model(model_of(folder), on_gpu=False)


def test_no_tensor_is_read(tmp_path: Path) -> None:
    """A model of 70 GB, of which there are the headers and a hole."""
    config = AutoConfig.for_model("llama", hidden_size=8192, intermediate_size=28672, num_hidden_layers=40)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        shapes = {name: tuple(w.shape) for name, w in AutoModelForCausalLM.from_config(config).state_dict().items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    written = json.dumps(header).encode()
    with (tmp_path / WEIGHTS).open("wb") as file:
        file.write(len(written).to_bytes(8, "little") + written)
        file.truncate(8 + len(written) + end)
    assert end > 60e9
    base = check_model(model_of(tmp_path), on_gpu=False)
    assert base is not None and base.num_embeddings == 32000


def test_weights_of_the_hub_are_looked_at_where_they_are_in_the_cache(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "models--owner--name" / "refs").mkdir(parents=True)
    (tmp_path / "models--owner--name" / "refs" / "main").write_text("a" * 40)
    snapshot = shutil.copytree(good, tmp_path / "models--owner--name" / "snapshots" / ("a" * 40))
    assert check_model(ModelConfig(path="owner/name"), on_gpu=False) is not None
    cut(snapshot / WEIGHTS, 9)
    with pytest.raises(ValueError, match=r"model\.safetensors has .* truncated"):
        check_model(ModelConfig(path="owner/name"), on_gpu=False)
    (snapshot / WEIGHTS).unlink()
    assert check_model(ModelConfig(path="owner/name"), on_gpu=False) is None
