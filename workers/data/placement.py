"""Flat token files -> the arrays of a store, in one pass over them and without holding what grows with them in memory.

    shards, block by block    each example gets its row (packing.py); a block, sorted by row, is a run on disk
    runs, part by part        a part is a range of rows: its examples are read from all runs and laid out

Distinct hashes are found in the same way: a part is then a range of values.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from workers.data.packing import RowAssignment, count_lengths
from workers.data.runs import GrowingArray, Runs
from workers.data.tokenization import Side, TokenShard

_BLOCK_TOKENS = 2**21
_BLOCK_EXAMPLES = 2**18
_PART_TOKENS = 2**20
_HASHES_PER_PART = 2**19


class Examples:
    """The examples of one side, over all shards.

    Args:
        chosen: ascending indices of those to take, counted over all shards; None for all.
    """

    def __init__(self, shards: Sequence[TokenShard], side: Side, chosen: NDArray[np.int64] | None) -> None:
        self._shards = [shard for shard in shards if shard.num_examples[side]]
        self._side: Side = side
        self._chosen = chosen

    def blocks(self, *names: str) -> Iterator[dict[str, NDArray[Any]]]:
        """The arrays of these names and `lengths`, for a bounded number of examples and tokens at once."""
        first = 0
        for shard in self._shards:
            start, first_token = 0, 0
            while start < shard.num_examples[self._side]:
                lengths = shard.array(self._side, "lengths", start, _BLOCK_EXAMPLES)
                num = max(1, int(np.searchsorted(np.cumsum(lengths, dtype=np.int64), _BLOCK_TOKENS, side="right")))
                lengths = lengths[:num]
                num_tokens = int(lengths.sum(dtype=np.int64))
                block = {"lengths": lengths}
                for name in names:
                    span = (first_token, num_tokens) if name in ("input_ids", "loss_mask") else (start, num)
                    block[name] = shard.array(self._side, name, *span)
                yield block if self._chosen is None else self._take(block, first)
                start, first, first_token = start + num, first + num, first_token + num_tokens

    def _take(self, block: dict[str, NDArray[Any]], first: int) -> dict[str, NDArray[Any]]:
        """What is chosen of a block that starts with this example."""
        assert self._chosen is not None
        lengths = block["lengths"]
        bounds = np.searchsorted(self._chosen, [first, first + len(lengths)])
        taken = self._chosen[bounds[0] : bounds[1]] - first
        tokens = token_places(lengths, taken)
        return {name: a[tokens if name in ("input_ids", "loss_mask") else taken] for name, a in block.items()}


def token_places(lengths: NDArray[np.int32], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the tokens of examples are that are put into this order, in the tokens of all examples of these lengths."""
    starts = (np.cumsum(lengths, dtype=np.int64) - lengths)[order]
    return spread(starts, lengths[order])


def spread(starts: NDArray[np.int64], lengths: NDArray[np.int32]) -> NDArray[np.int64]:
    """The places from each start on, as many as its length, one after the other."""
    before = np.cumsum(lengths, dtype=np.int64) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum(dtype=np.int64)))


class PlacedExamples:
    """Examples on disk in the order of their rows, in parts of consecutive rows; `with` removes them.

    Args:
        folder: takes temporary files of the size of the examples.
    """

    def __init__(self, folder: Path, examples: Examples, max_length: int, packing: bool) -> None:
        counts_L = np.zeros(max_length + 1, dtype=np.int64)
        for block in examples.blocks():
            counts_L += count_lengths(block["lengths"], max_length)
        assignment = RowAssignment(counts_L, packing)
        self.num_rows = assignment.num_rows
        self.num_examples = int(counts_L.sum())
        self.num_tokens = int(counts_L @ np.arange(max_length + 1))
        per_part = max(1, _PART_TOKENS // max_length)
        self.parts = [range(start, min(start + per_part, self.num_rows)) for start in range(0, self.num_rows, per_part)]
        types = {"rows": np.int64, "lengths": np.int32, "input_ids": np.int32, "loss_mask": np.bool_}
        with ExitStack() as stack:
            self._runs = {name: stack.enter_context(closing(Runs(folder, dtype))) for name, dtype in types.items()}
            for block in examples.blocks("input_ids", "loss_mask"):
                self._add(assignment.take(block["lengths"]), block)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _add(self, rows: NDArray[Any], block: dict[str, NDArray[Any]]) -> None:
        order = np.argsort(rows, kind="stable")
        rows, lengths = rows[order], block["lengths"][order]
        of_tokens = token_places(block["lengths"], order)
        starts = [part.start for part in self.parts]
        bounds = np.append(np.searchsorted(rows, starts), len(rows))
        token_bounds = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[bounds]
        self._runs["rows"].append(rows, bounds)
        self._runs["lengths"].append(lengths, bounds)
        for name in ("input_ids", "loss_mask"):
            self._runs[name].append(block[name][of_tokens], token_bounds)

    def read(self, part: int) -> dict[str, NDArray[Any]]:
        """`rows`, `lengths`, `input_ids` and `loss_mask` of a part's examples, by row and then by example."""
        found = {name: runs.read(part) for name, runs in self._runs.items()}
        order = np.argsort(found["rows"], kind="stable")
        of_tokens = token_places(found["lengths"], order)
        return {name: a[of_tokens if name in ("input_ids", "loss_mask") else order] for name, a in found.items()}


def write_distinct(path: Path, examples: Examples, name: str, num_examples: int) -> int:
    """Write the distinct hashes of this name, ascending; how many there are."""
    num_parts = -(-num_examples // _HASHES_PER_PART) or 1
    edges = np.array([2**64 * part // num_parts for part in range(num_parts)], dtype=np.uint64)
    with closing(Runs(path.parent, np.uint64)) as runs, closing(GrowingArray(path, np.uint64)) as written:
        for block in examples.blocks(name):
            distinct = np.unique(block[name])
            runs.append(distinct, np.append(np.searchsorted(distinct, edges), len(distinct)))
        for part in range(num_parts):
            written.append(np.unique(runs.read(part)))
        return written.num_rows
