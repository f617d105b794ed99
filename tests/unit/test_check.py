"""What the plan warns of, and what it is refused for."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoTokenizer, LlamaForCausalLM

from orchestrator.check import check, context_warning, end_of_turn_warning
from orchestrator.loading import load_config
from tests.runs import write_run
from workers.config import ModelConfig


def print_plan(file: Path, *overrides: str) -> str:
    console = Console(record=True, width=200)
    check(load_config(file, list(overrides)), console)
    return console.export_text()


def test_a_broken_base_is_told_before_its_rows_are_prepared(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"^model\.path: {weights} has .* cut off"):
        print_plan(file)
    assert not (tmp_path / "runs").exists()


def test_a_kernel_that_does_not_work_is_told(tmp_path: Path) -> None:
    file = write_run(tmp_path)
    assert "30 steps" in print_plan(file, "model.attention=eager")
    with pytest.raises(ValueError, match=r"^model\.attention: flash_attention_2 .* use sdpa or eager"):
        print_plan(file, "model.attention=flash_attention_2")


@pytest.mark.parametrize(
    ("rows", "token", "words"),
    [
        (320, {}, ""),
        (259, {"additional_special_tokens": ["<never>"]}, ""),
        (259, {"pad_token": "<late>"}, r"0 to 258, but the padding of every row has 259 \(<late>\)"),
        (200, {}, r"0 to 199, but domain 'add' has 201 \(.\), 223 \(.\); the tokenizer has 259 tokens"),
    ],
    ids=["padded", "unused", "padding", "texts"],
)
def test_ids_beyond_the_embedding_are_told_where_they_occur(
    tmp_path: Path, rows: int, token: dict[str, str], words: str
) -> None:
    file = write_run(tmp_path)
    base = tmp_path / "base"
    model = LlamaForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(rows)
    model.save_pretrained(base)
    assert json.loads((base / "config.json").read_text())["vocab_size"] == rows
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens(token)
    tokenizer.save_pretrained(base)
    if not words:
        assert "30 steps" in print_plan(file)
        return
    with pytest.raises(ValueError, match=words):
        print_plan(file)


def test_rows_longer_than_the_model_can_read_are_warned_of() -> None:
    (line,) = context_warning(1024, 512)
    assert "1,024 tokens in a row" in line.plain and "made for 512" in line.plain
    assert context_warning(512, 512) == [] and context_warning(8192, None) == []


@pytest.mark.parametrize(
    ("template", "num_loss_tokens", "is_warned"),
    [
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", 40, True),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}", 40, False),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", 98, False),  # documents alone
    ],
)
def test_answers_without_an_end_are_told(
    template: str, num_loss_tokens: int, is_warned: bool, tokenizer_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "template.jinja").write_text(template + "{% if add_generation_prompt %}assistant: {% endif %}")
    model = ModelConfig(path=str(tokenizer_folder), chat_template=tmp_path / "template.jinja")
    store = SimpleNamespace(num_tokens=100, num_examples=2, num_loss_tokens=num_loss_tokens)
    stores: Any = {"law": SimpleNamespace(train=store), "only measured": SimpleNamespace(train=None)}
    config: Any = SimpleNamespace(model=model)
    lines = [line.plain for line in end_of_turn_warning(config, stores)]
    assert len(lines) == is_warned
    if is_warned:
        assert "puts no end token after an answer" in lines[0] and "(domains law)" in lines[0]
