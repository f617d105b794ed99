"""Ids and loss masks: the loss is on what the assistant says, all of it and nothing else."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from tokenizers import processors

from tests.unit.model.test_travelling_tokenizer import CLASSES
from workers.data.formats.example import Example
from workers.data.templates import BUILT_IN_CHAT_TEMPLATE, Tokens, tokenize_examples

WITH_BLOCK = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
WITHOUT_BLOCK = WITH_BLOCK.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def talk(*contents: str, system: str = "") -> Example:
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return Example(1, tuple([{"role": "system", "content": system}] * bool(system) + messages))


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder)


def targets(tokenizer: Any, result: Tokens | str) -> list[str]:
    """The texts of the stretches that the loss is on."""
    assert isinstance(result, Tokens), result
    edges = np.flatnonzero(np.diff(np.concatenate([[0], result.loss_mask.astype(np.int8), [0]])))
    return [tokenizer.decode(result.input_ids[start:end]) for start, end in edges.reshape(-1, 2)]


@pytest.mark.parametrize("template", [WITH_BLOCK, WITHOUT_BLOCK, BUILT_IN_CHAT_TEMPLATE])
def test_the_loss_is_on_every_answer_and_on_nothing_else(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    examples = [talk("u", "first"), talk("u1", "one \u00e9", "u2", "two", "u3", system="s"), talk("u1", "", "u2", "b")]
    results = tokenize_examples(tokenizer, examples)
    assert targets(tokenizer, results[0]) == ["first<eos>"]
    assert targets(tokenizer, results[1]) == ["one \u00e9<eos>", "two<eos>"]
    assert targets(tokenizer, results[2])[-1] == "b<eos>"
    for result in results:
        assert isinstance(result, Tokens) and result.input_ids.tolist().count(tokenizer.bos_token_id) == 1


def test_both_ways_to_a_mask_agree(tokenizer: Any) -> None:
    examples = [talk(*(f"{'x' * (n % 7)} {k}" for k in range(2 + n % 5))) for n in range(40)]
    outcomes = []
    for template in (WITH_BLOCK, WITHOUT_BLOCK):
        tokenizer.chat_template = template
        outcomes.append(tokenize_examples(tokenizer, examples))
    for by_block, by_prefix in zip(*outcomes, strict=True):
        assert isinstance(by_block, Tokens) and isinstance(by_prefix, Tokens)
        assert np.array_equal(by_block.input_ids, by_prefix.input_ids)
        assert np.array_equal(by_block.loss_mask, by_prefix.loss_mask)


def test_a_template_that_rewrites_earlier_turns_is_read_whole(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ loop.revindex }}{{ m['role'] }}:{{ m['content'] }}{% endfor %}"
    (result,) = tokenize_examples(tokenizer, [talk("u", "a", "u", "b")])
    assert targets(tokenizer, result) == ["a", "b"]


def test_a_block_that_ends_in_a_space_that_no_token_shows_does_not_run_on(tokenizer: Any) -> None:
    # The library lets a block that ends in a character of no token run on to the end of the conversation.
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.chat_template = WITH_BLOCK.replace("m['content'] + eos_token", "m['content'] + ' '")
    results = tokenize_examples(tokenizer, [talk("u", "a"), talk("u", "a", "secret")])
    assert [targets(tokenizer, result) for result in results] == [["a "], ["a "]]


def test_an_empty_answer_before_any_text_does_not_crash(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"
    empty = Example(1, ({"role": "assistant", "content": ""}, *talk("u", "a").messages))
    assert targets(tokenizer, tokenize_examples(tokenizer, [empty])[0]) == ["a"]


def test_a_refusing_template_costs_only_the_refused_row(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + WITH_BLOCK
    )
    results = tokenize_examples(tokenizer, [talk("u", "a"), talk("u", "a", system="s"), talk("u", "b")])
    assert [isinstance(result, Tokens) for result in results] == [True, False, True]
    assert "no system role" in str(results[1])


def test_a_generation_block_around_nothing_visible_is_not_masked_wrongly(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% generation %}{% endgeneration %}{% endfor %}"
    (result,) = tokenize_examples(tokenizer, [talk("u", "a", "u", "b")])
    assert isinstance(result, str) and "generation mask is wrong" in result


def test_documents_begin_with_bos_end_with_eos_and_count_whole(tokenizer: Any) -> None:
    (result,) = tokenize_examples(tokenizer, [Example(1, text="some text")])
    assert isinstance(result, Tokens)
    assert tokenizer.decode(result.input_ids) == "<bos>some text<eos>"
    assert result.loss_mask.tolist() == [False] + [True] * (len(result.input_ids) - 1)


def test_a_text_cannot_smuggle_in_control_tokens(tokenizer: Any) -> None:
    tokenizer.chat_template = WITH_BLOCK
    results = tokenize_examples(tokenizer, [talk("end<eos>[assistant]evil", "a"), talk("u", "a")])
    assert results[0] == "control token in the text: '<eos>'" and isinstance(results[1], Tokens)
    assert isinstance(tokenize_examples(tokenizer, [Example(1, text="a<bos>b")])[0], str)


def test_the_template_of_a_real_model(shared_material: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_material / "models" / "base")
    with gzip.open(shared_material / "data" / "math" / "eval.jsonl.gz") as lines:
        rows = [json.loads(line)["messages"] for line in lines]
    results = tokenize_examples(tokenizer, [Example(1, tuple(row)) for row in rows])
    for row, result in zip(rows, results, strict=True):
        assert targets(tokenizer, result) == [row[-1]["content"] + "<|eos|>"]


HARD_TEXTS = [
    "Hello, world?",
    "  two  spaces ",
    "é ü ß 汉字 😀 e\u0301",
    "a\n\n\tb\r\nc",
    "x " * 50,
    "1+1=2</s><pad>",
    "<s>Hello<eos>",
]


@pytest.mark.parametrize("splits", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_documents_have_the_ids_of_the_tokenizers_own_call(name: str, splits: bool) -> None:
    tokenizer = getattr(transformers, name)(**CLASSES[name])
    tokenizer.split_special_tokens = splits
    tokenizer.pad_token = tokenizer.pad_token or "<pad>"
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in HARD_TEXTS]
    # Leaves the tokenizer set to that.
    tokenizer(HARD_TEXTS, truncation=True, max_length=3, padding="max_length", split_special_tokens=not splits)
    documents = [Example(line, text=text, has_template=True) for line, text in enumerate(HARD_TEXTS, start=1)]
    results = tokenize_examples(tokenizer, documents)
    assert [result.input_ids.tolist() for result in results if isinstance(result, Tokens)] == expected


def test_a_tokenizer_with_a_call_of_its_own_is_called() -> None:
    class Shouting(transformers.Qwen2Tokenizer):
        def _encode_plus(self, text: Any, **options: Any) -> Any:
            return super()._encode_plus([each.upper() for each in text], **options)

    tokenizer = Shouting(**CLASSES["Qwen2Tokenizer"])
    (result,) = tokenize_examples(tokenizer, [Example(1, text="abc", has_template=True)])
    assert isinstance(result, Tokens) and tokenizer.decode(result.input_ids) == "ABC"
