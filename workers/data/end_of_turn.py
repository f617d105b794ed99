"""The token that ends an answer, as the chat template teaches it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from workers.data.formats import Example
from workers.data.templates import tokenize_examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from workers.data.store import TokenStore

_ROWS = 256  # of each store, to see whether a token is a target; conversations have one in nearly every row
_MESSAGES = (
    {"role": "user", "content": "What is one and one?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "And two and two?"},
    {"role": "assistant", "content": "Four."},
)


def find_end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Id of the token that the chat template teaches after an answer, as `tokenize_examples` marks its targets.

    None where answers end without a token of their own, or the template refuses a plain conversation. Where several
    stand there (Phi-3: the end of the turn, a line break, the end of the text), it is the first.
    """
    # One exchange alone for templates that allow no more.
    tried = tokenize_examples(tokenizer, [Example(1, _MESSAGES), Example(1, _MESSAGES[:2])])
    tokens = next((result for result in tried if not isinstance(result, str)), None)
    if tokens is None:
        return None
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    end = None
    targets = tokens.input_ids[_last_run(tokens.loss_mask)]
    for token in reversed(targets.tolist()):
        if token in special:
            end = token
        elif str(tokenizer.decode([token])).strip():
            break  # the answer's own text
    return end


def has_answers(store: "TokenStore") -> bool:
    """Whether there are conversations in a store: in documents every token but the first is a target."""
    return store.num_loss_tokens < store.num_tokens - store.num_examples


def is_taught(end_id: int, stores: Iterable["TokenStore"]) -> bool:
    """Whether the token is a target in training rows; in documents alone it is not, whatever the template says."""
    return any(bool(((store.input_ids[:_ROWS] == end_id) & store.loss_mask[:_ROWS]).any()) for store in stores)


def taught_end(tokenizer: "PreTrainedTokenizerBase", stores: Iterable["TokenStore"]) -> int | None:
    """The end of a turn that these training rows teach; None where the tokenizer's own end token is to stay."""
    end_id = find_end_of_turn(tokenizer)
    return end_id if end_id is not None and is_taught(end_id, stores) else None


def renders_alike(tokenizer: "PreTrainedTokenizerBase", eos_token: str) -> bool:
    """Whether the chat template writes the same text where `eos_token` is the tokenizer's end token."""
    messages = list(_MESSAGES)
    before = tokenizer.apply_chat_template(messages, tokenize=False)
    return before == tokenizer.apply_chat_template(messages, tokenize=False, eos_token=eos_token)


def _last_run(mask: np.ndarray) -> slice:
    """Of the True entries, those of the last unbroken run."""
    targets = np.flatnonzero(mask)
    starts = targets[np.flatnonzero(np.diff(targets, prepend=-2) > 1)]
    return slice(int(starts[-1]), int(targets[-1]) + 1)
