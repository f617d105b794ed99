"""The token that ends an answer, found as the chat template teaches it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from workers.data.end_of_turn import ends_no_answer, find_end_of_turn, has_answers, is_taught, renders_alike, taught_end

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PHI = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "{{ eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}"
)
ONE_EXCHANGE = "{% if messages | length > 2 %}{{ raise_exception('one') }}{% endif %}" + CHATML
SYSTEM_FIRST = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('system') }}{% endif %}" + CHATML
NO_END = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Any:
    loaded = AutoTokenizer.from_pretrained(tokenizer_folder)
    loaded.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    return loaded


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),  # and a line break after it, which is a target too
        (PHI, "<|im_end|>"),  # and the end of the text, once at the very end
        (MARKED, "<eos>"),
        (ONE_EXCHANGE, "<|im_end|>"),
        (SYSTEM_FIRST, "<|im_end|>"),
        (NO_END, None),
        ("{{ raise_exception('never') }}", None),
    ],
)
def test_the_end_is_the_first_token_of_its_own_after_the_answer(tokenizer: Any, template: str, end: str | None) -> None:
    tokenizer.chat_template = template
    assert find_end_of_turn(tokenizer) == (None if end is None else tokenizer.convert_tokens_to_ids(end))


@pytest.mark.parametrize(
    ("template", "expected"), [(NO_END, True), (CHATML, False), ("{{ raise_exception('never') }}", False)]
)
def test_a_template_that_refuses_to_be_asked_is_not_said_to_end_nothing(
    tokenizer: Any, template: str, expected: bool
) -> None:
    tokenizer.chat_template = template
    assert ends_no_answer(tokenizer) is expected


class Rows:
    """What is asked of a token store."""

    def __init__(self, ids: list[int], mask: list[int]) -> None:
        self.input_ids, self.loss_mask = np.array([ids]), np.array([mask], dtype=bool)
        self.num_tokens, self.num_examples, self.num_loss_tokens = len(ids), 1, sum(mask)
        self.num_rows = 1


def test_only_rows_teach_it(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    document: Any = Rows([5, 6, 7, 1], [0, 1, 1, 1])
    conversation: Any = Rows([5, end, 7, end], [0, 0, 1, 1])
    only_asked: Any = Rows([5, end, 7, 8], [0, 0, 1, 1])
    assert not has_answers(document) and has_answers(conversation)
    assert is_taught(end, [document, conversation]) and not is_taught(end, [document, only_asked])
    assert taught_end(tokenizer, [conversation]) == end
    assert taught_end(tokenizer, [document]) is None


def test_a_template_that_writes_the_end_token_itself_is_seen(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    assert renders_alike(tokenizer, "<|im_end|>")
    tokenizer.chat_template = PHI
    assert not renders_alike(tokenizer, "<|im_end|>")


def test_the_end_is_looked_for_in_the_whole_store() -> None:
    """Its first rows are the longest, whose ends may have been cut off."""
    store: Any = Rows([1, 2, 3], [0, 1, 1])
    store.num_rows = 1000
    store.input_ids = np.full((1000, 3), 5)
    store.input_ids[900:, 2] = 7
    store.loss_mask = np.ones((1000, 3), dtype=bool)
    assert is_taught(7, [store]) and not is_taught(8, [store])
