"""The examples on which signals are measured: whole rows of the training stores, different ones at each evaluation.

A pool of each domain's rows follows from (seed, domain) and is divided into batches once. An evaluation draws batches
by (seed, domain, step) until it has enough examples, and a batch is measured whole or not at all. So the base model's
losses can be measured in advance for the whole pool, and the same model reproduces them bit for bit: other neighbours
in a batch, or other padding, would change the rounding. Every example of a packed row counts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.data.permutation import derive_key, permutation
from workers.data.store import TokenStore
from workers.fingerprint import fingerprint

_POOL_EVALUATIONS = 8  # examples in the pool, as a multiple of those of one evaluation


@dataclass(frozen=True)
class PoolBatch:
    """Some rows of one domain, always measured together."""

    domain: int
    rows: tuple[int, ...]
    first_example: int  # number of its first example within the whole pool
    num_examples: int
    num_tokens: int


class SignalPool:
    """Batches of every trained domain; the same on all ranks and in all attempts.

    An evaluation draws `num_examples` of each domain, or all of a domain that has fewer.
    """

    def __init__(self, stores: Mapping[str, TokenStore], seed: int, num_examples: int, micro_batch_size: int) -> None:
        self.names = list(stores)
        self.stores = list(stores.values())
        self.batches: list[PoolBatch] = []
        self.num_examples = 0
        self._seed = seed
        self._num_wanted = num_examples
        for domain, name in enumerate(self.names):
            self._add(
                domain, permutation(derive_key("signal pool", seed, name), stores[name].num_rows), micro_batch_size
            )

    def draw(self, step: int) -> list[PoolBatch]:
        """The batches of the evaluation after `step` steps, in descending order of tokens."""
        drawn = []
        for domain, name in enumerate(self.names):
            batches = [batch for batch in self.batches if batch.domain == domain]
            num_drawn = 0
            for index in permutation(derive_key("signal draw", self._seed, name, step), len(batches)):
                if num_drawn < self._num_wanted:
                    drawn.append(batches[index])
                    num_drawn += batches[index].num_examples
        return sorted(drawn, key=lambda batch: -batch.num_tokens)

    @property
    def digest(self) -> str:
        """Changes whenever an example, its number or its batch changes."""
        content = [[store.fingerprint for store in self.stores], [(b.domain, b.rows) for b in self.batches]]
        return fingerprint(content, num_bytes=16)

    def _add(self, domain: int, order_R: NDArray[np.int64], micro_batch_size: int) -> None:
        store = self.stores[domain]
        examples_R = np.cumsum(store.row_examples[order_R])
        pool = order_R[: 1 + int(np.searchsorted(examples_R, _POOL_EVALUATIONS * self._num_wanted))].tolist()
        # No more rows than an evaluation needs: packed, a micro batch may hold several times as many examples.
        num_rows = min(micro_batch_size, math.ceil(self._num_wanted * store.num_rows / store.num_examples))
        for start in range(0, len(pool), num_rows):
            rows = pool[start : start + num_rows]
            num_examples = int(store.row_examples[rows].sum())
            num_tokens = int(store.row_lengths[rows].sum())
            self.batches.append(PoolBatch(domain, tuple(rows), self.num_examples, num_examples, num_tokens))
            self.num_examples += num_examples


def number_examples(position_ids_BL: NDArray[np.integer], row_lengths_B: NDArray[np.integer]) -> NDArray[np.int64]:
    """The example of each token, counted from 0 over all rows, (B, L); -1 for padding.

    An example begins where positions restart.
    """
    is_used_BL = np.arange(position_ids_BL.shape[1]) < np.asarray(row_lengths_B)[:, None]
    starts_BL = is_used_BL & (position_ids_BL == 0)
    number_BL = np.cumsum(starts_BL.ravel()).reshape(starts_BL.shape) - 1
    return np.where(is_used_BL, number_BL, -1)
