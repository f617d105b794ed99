"""The token that ends an answer, as the chat template teaches it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from workers.data.formats.example import Example
from workers.data.templates import Tokens, tokenize_examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from workers.data.store import TokenStore

_ROWS = 256  # examined per store for whether a token is a target; nearly every row of conversations has one
_SYSTEM = {"role": "system", "content": "Be brief."}
_EXCHANGES = (
    {"role": "user", "content": "What is one and one?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "And two and two?"},
    {"role": "assistant", "content": "Four."},
)
# Some templates allow only one exchange, or need a system message.
_CONVERSATIONS = (_EXCHANGES, _EXCHANGES[:2], (_SYSTEM, *_EXCHANGES), (_SYSTEM, *_EXCHANGES[:2]))


def find_end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Id of the token that the chat template teaches after an answer, by the targets of `tokenize_examples`.

    None if answers end without such a token, or the template refuses every plain conversation. If there are several
    (Phi-3: end of turn, line break, end of text), it is the first.
    """
    rendered = _render(tokenizer)
    if rendered is None:
        return None
    _, tokens = rendered
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    end = None
    targets = np.flatnonzero(tokens.loss_mask)
    last_run = targets[np.flatnonzero(np.diff(targets, prepend=-2) > 1)[-1] :]
    for token in reversed(tokens.input_ids[last_run].tolist()):
        if token in special:
            end = token
        elif str(tokenizer.decode([token])).strip():
            break  # the text of the answer
    return end


def ends_no_answer(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the chat template ends answers without an end token; False if it refuses every plain conversation."""
    return _render(tokenizer) is not None and find_end_of_turn(tokenizer) is None


def has_answers(store: "TokenStore") -> bool:
    """Whether a store contains conversations: in documents every token but the first is a target."""
    return store.num_loss_tokens < store.num_tokens - store.num_examples


def is_taught(end_id: int, stores: Iterable["TokenStore"]) -> bool:
    """Whether the token is a target in training data; with documents alone it is not, whatever the template says."""
    for store in stores:
        # Spread over the store: its first rows are the longest, whose ends may be cut off.
        rows = np.unique(np.linspace(0, store.num_rows - 1, min(store.num_rows, _ROWS)).astype(np.int64))
        if ((store.input_ids[rows] == end_id) & store.loss_mask[rows]).any():
            return True
    return False


def taught_end(tokenizer: "PreTrainedTokenizerBase", stores: Iterable["TokenStore"]) -> int | None:
    """The end-of-turn token that this training data teaches; None to keep the tokenizer's end token."""
    end_id = find_end_of_turn(tokenizer)
    return end_id if end_id is not None and is_taught(end_id, stores) else None


def renders_alike(tokenizer: "PreTrainedTokenizerBase", eos_token: str) -> bool:
    """Whether the chat template writes the same text with `eos_token` as the tokenizer's end token."""
    rendered = _render(tokenizer)
    if rendered is None:
        return False
    messages = list(rendered[0])
    before = tokenizer.apply_chat_template(messages, tokenize=False)
    return before == tokenizer.apply_chat_template(messages, tokenize=False, eos_token=eos_token)


def _render(tokenizer: "PreTrainedTokenizerBase") -> tuple[tuple[dict[str, str], ...], Tokens] | None:
    """The first conversation that the template accepts, and its tokens."""
    tried = tokenize_examples(tokenizer, [Example(1, messages) for messages in _CONVERSATIONS])
    taken = zip(_CONVERSATIONS, tried, strict=True)
    return next(((messages, tokens) for messages, tokens in taken if not isinstance(tokens, str)), None)
