"""Checks that the model has an embedding for every token id in the data."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workers.data.store import TokenStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BLOCK_TOKENS = 2**24
_MAX_NAMED = 3


def check_token_ids(
    stores: Mapping[str, Sequence[TokenStore]], tokenizer: "PreTrainedTokenizerBase", num_embeddings: int
) -> None:
    """Refuse ids beyond the embedding; the stores are read only if the tokenizer has such ids.

    Raises:
        ValueError: a store contains an id of at least `num_embeddings`, or the pad token has one.
    """
    largest = max(tokenizer.get_vocab().values())
    if largest < num_embeddings:
        return
    pad_id = tokenizer.pad_token_id
    if isinstance(pad_id, int) and pad_id >= num_embeddings:
        raise ValueError(_message("the padding of every row", np.array([pad_id]), tokenizer, num_embeddings))
    for name, of_domain in stores.items():
        beyond = np.unique(np.concatenate([_ids_from(store, num_embeddings) for store in of_domain]))
        if len(beyond):
            raise ValueError(_message(f"domain {name!r}", beyond, tokenizer, num_embeddings))


def _ids_from(store: TokenStore, first: int) -> NDArray[np.int32]:
    rows = max(1, _BLOCK_TOKENS // store.max_length)
    blocks = (store.input_ids[start : start + rows] for start in range(0, store.num_rows, rows))
    found = [np.unique(block[block >= first]) for block in blocks]
    return np.unique(np.concatenate([np.empty(0, dtype=np.int32), *found]))


def _message(where: str, ids: NDArray[np.int32], tokenizer: "PreTrainedTokenizerBase", num_embeddings: int) -> str:
    named = ", ".join(f"{i} ({tokenizer.convert_ids_to_tokens(i)})" for i in ids[:_MAX_NAMED].tolist())
    more = f" and {len(ids) - _MAX_NAMED} more" if len(ids) > _MAX_NAMED else ""
    return (
        f"model.path: the model has embeddings for the token ids 0 to {num_embeddings - 1:,}, but {where} has "
        f"{named}{more}; the tokenizer has {len(tokenizer):,} tokens, so use the one that belongs to the model, or "
        "enlarge the model with model.resize_token_embeddings(len(tokenizer)) and save it"
    )
