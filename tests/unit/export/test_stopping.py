"""An exported folder stops at the end of a turn that training taught, as generation itself reads it."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.runs import write_llama
from tests.unit.data.test_end_of_turn import CHATML, PHI
from workers.export.writing import save_tokenizer, stop_at

END = 40  # any token


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_llama(tmp_path)
    return tmp_path


def test_generation_ends_at_the_taught_token_and_at_the_former_one(folder: Path) -> None:
    stop_at(END, folder)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [END, 1]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == [END, 1] == model.config.eos_token_id
    # A head that says END whatever it reads: generation goes on for ten tokens without the change, and for one with it.
    model.lm_head.weight.data.zero_()
    ids = AutoTokenizer.from_pretrained(folder)("ab", return_tensors="pt")["input_ids"]

    def say_end(module: Any, given: Any, output: Any) -> None:
        output.logits[..., END] = 9.0

    model.register_forward_hook(say_end)
    assert model.generate(ids, max_new_tokens=10, do_sample=False).shape[1] == ids.shape[1] + 1


@pytest.mark.parametrize(
    ("former", "expected"),
    [([7, 1], [END, 7, 1]), (END, [END]), ([1, END], [END, 1]), (None, [END, 1])],
    ids=["a list", "the same", "named already", "in the other file"],
)
def test_former_end_tokens_stay(folder: Path, former: Any, expected: list[int]) -> None:
    file = folder / "generation_config.json"
    content = json.loads(file.read_text())
    content.pop("eos_token_id", None)
    file.write_text(json.dumps(content | ({} if former is None else {"eos_token_id": former})))
    stop_at(END, folder)
    assert GenerationConfig.from_pretrained(folder).eos_token_id == expected


def test_sampling_settings_that_contradict_each_other_do_not_stop_an_export(folder: Path, tmp_path: Path) -> None:
    file = folder / "generation_config.json"
    settings = {"do_sample": False, "temperature": 0.6, "top_p": 0.9}
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "out")
    stop_at(END, tmp_path / "out")
    written = GenerationConfig.from_pretrained(tmp_path / "out")
    assert written.eos_token_id == [END, 1] and written.temperature == 0.6


@pytest.mark.parametrize(("template", "expected"), [(CHATML, "<|im_end|>"), (PHI, "<eos>")])
def test_the_tokenizer_follows_unless_its_template_would_write_another_text(
    folder: Path, tmp_path: Path, template: str, expected: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.chat_template = template
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    before = tokenizer.apply_chat_template(messages, tokenize=False)
    save_tokenizer(tokenizer, tokenizer.convert_tokens_to_ids("<|im_end|>"), tmp_path / "out")
    written = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert written.eos_token == expected and written.pad_token == "<pad>"
    assert written.apply_chat_template(messages, tokenize=False) == before
    assert tokenizer.eos_token == "<eos>"  # the one in use is only read
