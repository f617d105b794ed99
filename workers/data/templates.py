"""Examples -> token ids and loss mask, in batches.

The loss is on what the assistant says. With a `{% generation %}` block in the chat template the template itself says
what that is; without one it is the difference between the ids of the conversation up to the answer, generation prompt
included, and those of the conversation with the answer, which must begin alike. A row whose mask cannot be known for
sure is refused with the reason rather than masked wrongly.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from workers.data.formats import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUILT_IN_CHAT_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
    "{{ '### ' + message['role'].capitalize() + ':\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + (eos_token or '') }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\n### Assistant:\\n' }}{% endif %}"
)
"""For tokenizers that have none: plain words for the roles, so any vocabulary will do; answers end with EOS."""

_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Without this the library builds an attention mask that nobody reads, and warns of texts over the model's length.
_TOKENIZER_OPTIONS = {"return_attention_mask": False, "verbose": False}

Ids = list[int]


@dataclass(frozen=True, slots=True)
class Tokens:
    """An example as the model sees it: (L,) ids, and which of them are targets."""

    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]


def tokenize_examples(tokenizer: "PreTrainedTokenizerBase", examples: Sequence[Example]) -> list[Tokens | str]:
    """Tokens of each example, or the reason why it has none; all of them conversations, or all of them documents."""
    control_tokens = _control_tokens(tokenizer)
    results: list[Tokens | str | None] = [_find_control_token(control_tokens, example) for example in examples]
    clean = [index for index, result in enumerate(results) if result is None]
    tokenize = _tokenize_conversations if any(example.messages for example in examples) else _tokenize_documents
    for index, result in zip(clean, tokenize(tokenizer, [examples[index] for index in clean]), strict=True):
        results[index] = result if isinstance(result, str) else _check_targets(result)
    return [result for result in results if result is not None]


def _control_tokens(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str] | None:
    contents = [
        token.content for token in tokenizer.added_tokens_decoder.values() if token.special and token.content.strip()
    ]
    return re.compile("|".join(map(re.escape, contents))) if contents else None


def _find_control_token(control_tokens: re.Pattern[str] | None, example: Example) -> str | None:
    """Why the text would be read as more than text: a row must not be able to end a turn or to open one."""
    for text in [message["content"] for message in example.messages] or [example.text]:
        if control_tokens and (found := control_tokens.search(text)):
            return f"control token in the text: {found.group()!r}"
    return None


def _check_targets(tokens: Tokens) -> Tokens | str:
    tokens.loss_mask[:1] = False  # nothing stands before the first token that could predict it
    return tokens if tokens.loss_mask.any() else "no assistant text"


def _tokenize_documents(tokenizer: "PreTrainedTokenizerBase", examples: list[Example]) -> list[Tokens | str]:
    if not examples:
        return []
    texts = [example.text for example in examples]
    before = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    after = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    encoded = tokenizer(texts, add_special_tokens=False, **_TOKENIZER_OPTIONS)["input_ids"]
    return [_tokens(ids := [*before, *text_ids, *after], [True] * len(ids)) for text_ids in encoded]


def _tokenize_conversations(tokenizer: "PreTrainedTokenizerBase", examples: list[Example]) -> list[Tokens | str]:
    has_mask = tokenizer.is_fast and _GENERATION_BLOCK.search(tokenizer.get_chat_template())
    tokenize = _tokenize_by_generation_mask if has_mask else _tokenize_by_prefix
    try:
        return tokenize(tokenizer, examples) if examples else []
    except (TemplateError, TypeError, ValueError, OverflowError) as error:
        # One row that the template refuses (roles out of turn, say) fails its whole batch: find it. An empty generation
        # block before any text makes the library overflow.
        if len(examples) == 1:
            return [f"the chat template refuses it: {str(error)[:200]}"]
    return [result for example in examples for result in _tokenize_conversations(tokenizer, [example])]


def _tokenize_by_generation_mask(tokenizer: "PreTrainedTokenizerBase", examples: list[Example]) -> list[Tokens | str]:
    encoded: Any = tokenizer.apply_chat_template(
        [list(example.messages) for example in examples],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs=_TOKENIZER_OPTIONS,
    )
    masked = zip(examples, encoded["input_ids"], encoded["assistant_masks"], strict=True)
    return [_check_mask(example, ids, mask) for example, ids, mask in masked]


def _check_mask(example: Example, ids: Ids, mask: Ids) -> Tokens | str:
    """The library's mask has gaps, or runs on to the end, where a generation block begins or ends in characters that
    belong to no token; neither is an error there."""
    num_runs = sum(value for value, _ in groupby(mask))
    num_answers = sum(1 for message in example.messages if message["role"] == "assistant")
    num_blank = sum(1 for message in example.messages if message["role"] == "assistant" and not message["content"])
    runs_on = bool(mask[-1]) and example.messages[-1]["role"] != "assistant"
    if not num_answers - num_blank <= num_runs <= num_answers or runs_on:
        return f"the chat template's generation mask is off: it marks {num_runs} answers of {num_answers}"
    return _tokens(ids, mask)


def _tokenize_by_prefix(tokenizer: "PreTrainedTokenizerBase", examples: list[Example]) -> list[Tokens | str]:
    """Tokenises every conversation whole, up to each answer, and after each answer."""
    parts: list[tuple[list[dict[str, str]], bool]] = []  # messages, and whether the generation prompt follows
    for example in examples:
        messages = list(example.messages)
        parts.append((messages, False))
        for answer in _answers(example):
            parts += [(messages[:answer], True), (messages[: answer + 1], False)]
    texts = [
        str(tokenizer.apply_chat_template(part, tokenize=False, add_generation_prompt=prompt)) for part, prompt in parts
    ]
    distinct = list(dict.fromkeys(texts))  # most conversations end with an answer, so they come twice
    encoded = tokenizer(distinct, add_special_tokens=False, **_TOKENIZER_OPTIONS)["input_ids"]
    ids_of = dict(zip(distinct, encoded, strict=True))
    ids = iter([ids_of[text] for text in texts])
    return [_mask_by_prefix(next(ids), [(next(ids), next(ids)) for _ in _answers(example)]) for example in examples]


def _mask_by_prefix(ids: Ids, answers: list[tuple[Ids, Ids]]) -> Tokens | str:
    mask = [False] * len(ids)
    for number, (until, after) in enumerate(answers, start=1):
        if ids[: len(until)] != until or ids[: len(after)] != after:
            return (
                f"the chat template does not show where an answer begins: answer {number} changes what stands before "
                "it; give model.chat_template with a {% generation %} block"
            )
        mask[len(until) : len(after)] = [True] * (len(after) - len(until))
    return _tokens(ids, mask)


def _answers(example: Example) -> list[int]:
    return [index for index, message in enumerate(example.messages) if message["role"] == "assistant"]


def _tokens(ids: Ids, mask: Sequence[int]) -> Tokens:
    return Tokens(np.asarray(ids, dtype=np.int32), np.asarray(mask, dtype=np.bool_))
