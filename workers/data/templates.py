"""Examples -> token ids and loss mask, in batches.

The loss is on what the assistant says and on the token that ends it: on every token with a character of them, as
`answer_spans` finds them in the rendered text. A row for which that cannot be determined is refused with the reason
rather than masked wrongly.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workers.data.answer_spans import find_answers
from workers.data.chat_template import ChatTemplate, Conversation, Rendered, Span, TemplateRefusal
from workers.data.formats.example import Example, says_something
from workers.data.messages import text_of

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
"""For tokenizers without one: roles in plain words, so any vocabulary will do; answers end with EOS."""

# Otherwise the library builds an unused attention mask and warns about texts over the model's length.
_TOKENIZER_OPTIONS = {"return_attention_mask": False, "verbose": False}

_TEMPLATE_IN_TEXT = "; if the text already includes its chat template, set the domain's text_has_template"


@dataclass(frozen=True, slots=True)
class Tokens:
    """An example as the model sees it: (L,) ids, and which of them are targets."""

    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    dropped: tuple[str, ...] = ()  # kinds of content that the chat template omitted


def tokenize_examples(tokenizer: "PreTrainedTokenizerBase", examples: Sequence[Example]) -> list[Tokens | str]:
    """Tokens of each example, or why it has none; the examples are all conversations or all documents."""
    control_tokens = _control_tokens(tokenizer)
    results: list[Tokens | str | None] = [_find_control_token(control_tokens, example) for example in examples]
    clean = [index for index, result in enumerate(results) if result is None]
    tokenize = _tokenize_conversations if any(example.messages for example in examples) else _tokenize_documents
    for index, result in zip(clean, tokenize(tokenizer, [examples[index] for index in clean]), strict=True):
        results[index] = result if isinstance(result, str) else _check_targets(result)
    return [result for result in results if result is not None]


def _control_tokens(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str] | None:
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    contents = [content for content in special if content.strip()]
    return re.compile("|".join(map(re.escape, contents))) if contents else None


def _find_control_token(control_tokens: re.Pattern[str] | None, example: Example) -> str | None:
    """Why the text would not be read as plain text: a row must not be able to open or end a turn."""
    if control_tokens is None or example.has_template:
        return None
    for text in example.texts:
        if found := control_tokens.search(text):
            return f"control token in the text: {found.group()!r}" + ("" if example.messages else _TEMPLATE_IN_TEXT)
    return None


def _check_targets(tokens: Tokens) -> Tokens | str:
    tokens.loss_mask[:1] = False  # nothing precedes the first token that could predict it
    return tokens if tokens.loss_mask.any() else "no assistant text: the chat template omits it"


def _tokenize_documents(tokenizer: "PreTrainedTokenizerBase", examples: list[Example]) -> list[Tokens | str]:
    if not examples:
        return []
    texts = [example.text for example in examples]
    before = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    after = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    encoded = _encode(tokenizer, texts)
    whole = [
        np.asarray(ids if example.has_template else [*before, *ids, *after], dtype=np.int32)
        for example, ids in zip(examples, encoded, strict=True)
    ]
    return [Tokens(ids, np.ones(len(ids), dtype=np.bool_)) for ids in whole]


def _encode(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[list[int]]:
    """Ids of each text, without special tokens around them. Where nothing but the library's own call would be made of
    them, the tokenizer beneath it is asked for ids alone: to note the characters of each takes a third of the time."""
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    own = ("__call__", "_encode_plus")
    if not (tokenizer.is_fast and all(getattr(kind, name) is getattr(PreTrainedTokenizerFast, name) for name in own)):
        encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False, **_TOKENIZER_OPTIONS)["input_ids"]
        return encoded
    backend: Any = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _tokenize_conversations(tokenizer: "PreTrainedTokenizerBase", examples: list[Example]) -> list[Tokens | str]:
    template = ChatTemplate(tokenizer)
    ahead = template.render_ahead(examples)
    read = [_read(template, example, rendered) for example, rendered in zip(examples, ahead, strict=True)]
    rendered = [result for result in read if not isinstance(result, str)]
    masked = iter(_mask(tokenizer, rendered))
    return [result if isinstance(result, str) else next(masked) for result in read]


def _read(template: ChatTemplate, example: Example, ahead: Rendered | None) -> tuple[Conversation, list[Span]] | str:
    """The rendered conversation, and the characters that are trained on."""
    try:
        conversation = template.read(example, ahead)
        answers = [a for a in find_answers(template, conversation) if conversation.learned[a.message]]
    except TemplateRefusal as refusal:
        return str(refusal)
    found = {answer.message for answer in answers}
    wanted = {
        index
        for index, message in enumerate(conversation.messages)
        if conversation.learned[index] and says_something({**message, "content": text_of(message)})
    }
    if wanted - found and "assistant message" not in conversation.dropped:
        # It may be in the text as part of another speaker's message.
        conversation = replace(conversation, dropped=(*conversation.dropped, "assistant message"))
    return conversation, [(answer.start, answer.end) for answer in answers]


def _mask(tokenizer: "PreTrainedTokenizerBase", rendered: list[tuple[Conversation, list[Span]]]) -> list[Tokens]:
    if not rendered:
        return []
    texts = [conversation.text for conversation, _ in rendered]
    encoded: Any = tokenizer(texts, add_special_tokens=False, **_TOKENIZER_OPTIONS)
    results = []
    for index, (conversation, targets) in enumerate(rendered):
        ids = np.asarray(encoded["input_ids"][index], dtype=np.int32)
        if tokenizer.is_fast:
            loss_mask = mask_by_offsets(_Offsets(encoded.encodings[index]), targets)
        else:
            loss_mask = _mask_by_prefixes(tokenizer, conversation.text, ids, targets)
        results.append(Tokens(ids, loss_mask, conversation.dropped))
    return results


class _Offsets(Sequence[Span]):
    """The characters of each token, looked up lazily: a list of all would take longer than tokenising."""

    def __init__(self, encoding: Any) -> None:
        self._encoding = encoding

    def __len__(self) -> int:
        return len(self._encoding)

    def __getitem__(self, index: Any) -> Any:
        return self._encoding.token_to_chars(index)


def mask_by_offsets(offsets: Sequence[Span], targets: list[Span]) -> NDArray[np.bool_]:
    """Which tokens contain a character of the targets.

    Args:
        offsets: (L,) characters of each token, from the tokenizer. Tokens that share a character, such as the bytes of
            an emoji, all have it; a token may have none, such as a space that the tokenizer trims.
        targets: spans of characters, ascending.
    """
    mask_L = np.zeros(len(offsets), dtype=np.bool_)
    for start, end in targets:
        first = bisect_right(offsets, start, key=itemgetter(1))
        stop = bisect_left(offsets, end, key=itemgetter(0))
        # A token without characters belongs to the target if it was inserted right before it, or if its space was
        # trimmed at the end.
        while first and offsets[first - 1] == (start, start) and (first == 1 or offsets[first - 2][1] == start):
            first -= 1
        while stop < len(offsets) and offsets[stop] == (end, end) and offsets[stop - 1][1] < end:
            stop += 1
        mask_L[first:stop] = True
    return mask_L


def _mask_by_prefixes(
    tokenizer: "PreTrainedTokenizerBase", text: str, ids: NDArray[np.int32], targets: list[Span]
) -> NDArray[np.bool_]:
    """The same for a tokenizer that does not report the characters of its tokens."""

    def count_tokens(until: int) -> tuple[int, bool]:
        """Complete tokens in the text up to here, and whether the next one begins here."""
        part = np.asarray(tokenizer(text[:until], add_special_tokens=False, **_TOKENIZER_OPTIONS)["input_ids"])
        length = min(len(part), len(ids))
        differing = np.flatnonzero(part[:length] != ids[:length])
        return (int(differing[0]), False) if len(differing) else (length, True)

    mask_L = np.zeros(len(ids), dtype=np.bool_)
    for start, end in targets:
        last, is_whole = count_tokens(end)
        mask_L[count_tokens(start)[0] : last + (not is_whole)] = True
    return mask_L
