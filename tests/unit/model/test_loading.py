"""Model and tokenizer from a folder: what loads, and what is refused with a reason."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.tiny_families import build
from workers.config.model import ModelConfig
from workers.config.training import TrainingConfig
from workers.model.loading import check_model, find_decoder, load_model
from workers.model.tokenizer import load_tokenizer


def training(**settings: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"max_steps": 1, **settings})


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(num_attention_heads=2, **sizes)).save_pretrained(folder)
    backend = Tokenizer(models.WordLevel({"<eos>": 0, "a": 1}, unk_token="<eos>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(made_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_once, tmp_path / "model"))


def change_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_attention_and_cache(folder: Path, dtype: str, capfd: pytest.CaptureFixture[str]) -> None:
    model = load_model(ModelConfig(path=str(folder), dtype=dtype, attention="eager"))  # type: ignore[arg-type]
    assert model.dtype == getattr(torch, dtype)
    assert model.config._attn_implementation == "eager"
    assert model.config.use_cache is False
    assert capfd.readouterr() == ("", "")


def test_missing_folder(tmp_path: Path) -> None:
    for load in (load_model, load_tokenizer):
        with pytest.raises(ValueError, match="no such folder"):
            load(ModelConfig(path=str(tmp_path / "nowhere")))


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_model(ModelConfig(path=str(tmp_path)))


def test_pickled_weights_are_never_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    with pytest.raises(ValueError, match=r"pickle \(pytorch_model\.bin\)"):
        load_model(ModelConfig(path=str(folder)))


def test_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no \*\.safetensors"):
        load_model(ModelConfig(path=str(folder)))


def test_remote_code_is_refused_and_never_run(folder: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(folder / 'owned')!r}, 'w')")
    change_json(folder / "config.json", model_type="evil", auto_map={"AutoModelForCausalLM": "evil.Model"})
    for load in (load_model, load_tokenizer):
        with pytest.raises(ValueError, match="never runs remote code"):
            load(ModelConfig(path=str(folder)))
    assert not (folder / "owned").exists()


def test_code_of_a_known_architecture_is_ignored(folder: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(folder / 'owned')!r}, 'w')")
    change_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"})
    change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    assert type(load_model(ModelConfig(path=str(folder)))) is LlamaForCausalLM
    load_tokenizer(ModelConfig(path=str(folder)))
    assert not (folder / "owned").exists()


def test_absent_weights_are_not_made_up(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing from the files, first model\.norm\.weight"):
        load_model(ModelConfig(path=str(folder)))


def test_tied_weights_are_not_taken_for_absent(tmp_path: Path) -> None:
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(num_attention_heads=2, tie_word_embeddings=True, **sizes)).save_pretrained(tmp_path)
    assert load_model(ModelConfig(path=str(tmp_path))).config.tie_word_embeddings


@pytest.mark.parametrize("is_same", [True, False])
def test_a_tie_flag_that_the_file_contradicts_is_taken_back(folder: Path, is_same: bool) -> None:
    from safetensors.torch import load_file, save_file

    change_json(folder / "config.json", tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    assert not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    if is_same:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = load_model(ModelConfig(path=str(folder), dtype="float32"))
    plain = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(16)[None]
    assert torch.equal(model(ids).logits, plain(ids).logits)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is is_same  # type: ignore[union-attr]
    assert model.config.tie_word_embeddings is is_same
    assert model.all_tied_weights_keys == plain.all_tied_weights_keys


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_no_number_is_named(folder: Path, value: float, dtype: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"1 of its weights contain NaN or infinity, first model\.layers\.0\.mlp\.up_proj"
    ):
        load_model(ModelConfig(path=str(folder), dtype=dtype))  # type: ignore[arg-type]


@pytest.mark.parametrize("file", ["nothing", "half"])
def test_a_tokenizer_that_does_not_load_is_told_in_a_line(folder: Path, file: str) -> None:
    (folder / "tokenizer.json").unlink()
    if file == "half":
        (folder / "tokenizer.json").write_text("{}")
    words = "has no tokenizer.json" if file == "nothing" else "its tokenizer does not load: KeyError"
    with pytest.raises(ValueError, match=words) as error:
        load_tokenizer(ModelConfig(path=str(folder)))
    assert str(error.value).startswith(f"model.path: {folder}") and "\n" not in str(error.value)


def test_tokenizer_pads_and_has_a_chat_template(folder: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=str(folder)))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 0
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)


def test_chat_template_file_replaces_the_tokenizers_own(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages[0]['content'] }}!")
    tokenizer = load_tokenizer(ModelConfig(path=str(folder), chat_template=file))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "a!"
    with pytest.raises(ValueError, match=r"model\.chat_template: no such file"):
        load_tokenizer(ModelConfig(path=str(folder), chat_template=tmp_path / "nowhere.jinja"))


def test_tokenizer_without_any_end_is_refused(folder: Path) -> None:
    backend = Tokenizer(models.WordLevel({"b": 0, "a": 1}, unk_token="b"))
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)
    with pytest.raises(ValueError, match="neither a pad token nor"):
        load_tokenizer(ModelConfig(path=str(folder)))


def test_a_misspelt_folder_beside_others_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "qwen2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no such folder: models/qwen"):
        load_tokenizer(ModelConfig(path="models/qwen"))


def test_a_folder_without_a_tokenizer_is_not_taken_for_one_with_an_empty_one(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"tokenizer"):
        load_tokenizer(ModelConfig(path=str(folder)))


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "llama4_text", "modernbert-decoder", "mamba2", "rwkv"])
def test_the_decoder_is_what_gives_the_last_hidden_states(family: str) -> None:
    model = build(family).eval()
    seen: list[torch.Tensor] = []
    find_decoder(model).register_forward_hook(lambda module, given, output: seen.append(output.last_hidden_state))
    with torch.no_grad():
        logits = model(input_ids=torch.arange(3, 13)[None], use_cache=False).logits
    assert [hidden.shape[:2] for hidden in seen] == [logits.shape[:2]]


def test_what_a_family_cannot_do_is_told_before_the_run(tmp_path: Path) -> None:
    build("rwkv").save_pretrained(tmp_path / "rwkv")
    rwkv = ModelConfig(path=str(tmp_path / "rwkv"), dtype="float32")
    assert check_model(rwkv, False, training(deepspeed={"zero_stage": 2})) is not None
    with pytest.raises(ValueError, match=r"^training\.deepspeed\.zero_stage: RWKV .* use stage 0, 1 or 2"):
        check_model(rwkv, False, training(deepspeed={"zero_stage": 3}))
    build("ctrl").save_pretrained(tmp_path / "ctrl")
    ctrl = ModelConfig(path=str(tmp_path / "ctrl"), dtype="float32")
    with pytest.raises(ValueError, match=r"^training\.activation_checkpointing: CTRLLMHeadModel does not support it"):
        check_model(ctrl, False, training(activation_checkpointing=True))
