"""Which examples share a row (sequence): best fit, longest first.

Every example goes whole into the fullest row that has room for it (Johnson 1974: at most 11/9 of the fewest rows, and
within one per cent of it on real lengths). Ties go to the row that reached that room last, and examples of equal length
keep their order, so the result depends on the lengths alone.

Examples of one length are placed together: a row that is taken once is taken until it has no more room for that length.
So the rows follow from how many examples have each length, and then each example gets its own, block by block.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.signedinteger]


@dataclass(frozen=True)
class Packing:
    """Row r holds the examples `examples[offsets[r] : offsets[r + 1]]`."""

    examples: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @property
    def num_rows(self) -> int:
        return len(self.offsets) - 1


def pack_examples(lengths: NDArray[np.int32], max_length: int, packing: bool = True) -> Packing:
    """Rows of at most `max_length` tokens; one example per row without `packing`."""
    assignment = RowAssignment(count_lengths(lengths, max_length), packing)
    rows = assignment.take(lengths)
    counts = np.bincount(rows, minlength=assignment.num_rows)
    return Packing(np.argsort(rows, kind="stable"), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def count_lengths(lengths: NDArray[np.int32], max_length: int) -> NDArray[np.int64]:
    """(max_length + 1,) how many examples have each length; ValueError if one does not fit a row."""
    if len(lengths) and not 0 < lengths.min() <= lengths.max() <= max_length:
        raise ValueError(f"lengths {lengths.min()} to {lengths.max()} do not fit rows of {max_length} tokens")
    return np.bincount(lengths, minlength=max_length + 1)


class RowAssignment:
    """The row of every example, given in blocks and in their order.

    Memory is 12 bytes for each row and length of which it holds examples, whatever their number.

    Args:
        counts_L: how many examples of each length there are in all blocks together.
        packing: whether examples share rows.
    """

    def __init__(self, counts_L: NDArray[np.int64], packing: bool = True) -> None:
        self._packing = packing
        # The places of examples, longest first: those before `_ends[i]` that are not before `_ends[i - 1]` are in row
        # `_rows[i]`. The next example of length l is at place `_next_L[l]`.
        self._next_L = np.cumsum(counts_L[::-1])[::-1] - counts_L
        self._num_taken = 0
        self.num_rows = int(counts_L.sum())
        if packing:
            self._rows, self._ends, self.num_rows = _best_fit(counts_L)

    def take(self, lengths: NDArray[np.int32]) -> Rows:
        """(N,) the rows of the next N examples, of these lengths."""
        if not self._packing:
            self._num_taken += len(lengths)
            return np.arange(self._num_taken - len(lengths), self._num_taken)
        narrow = lengths.astype(np.uint16) if len(self._next_L) <= 2**16 else lengths  # radix sort
        order = np.argsort(narrow, kind="stable")
        counts_L = np.bincount(lengths, minlength=len(self._next_L))
        firsts_L = self._next_L - (np.cumsum(counts_L) - counts_L)
        places = np.arange(len(lengths)) + np.repeat(firsts_L, counts_L)
        self._next_L += counts_L
        rows = np.empty(len(lengths), dtype=self._rows.dtype)
        rows[order] = self._rows[np.searchsorted(self._ends, places, side="right")]
        return rows


def _best_fit(counts_L: NDArray[np.int64]) -> tuple[Rows, NDArray[np.int64], int]:
    """(rows, where the places in them end, number of rows) of the examples in order, longest first."""
    max_length = len(counts_L) - 1
    small = np.int32 if counts_L.sum() < 2**31 else np.int64
    rows_with_room: list[list[Rows]] = [[] for _ in counts_L]  # parts of stacks
    rooms = 0  # bit r is set where some row has room for exactly r more tokens
    num_rows = 0
    placed: list[Rows] = [np.empty(0, small)]
    copies: list[Rows] = [np.empty(0, small)]
    for length in np.flatnonzero(counts_L)[::-1].tolist():
        left = int(counts_L[length])
        while left:
            fitting = rooms >> length
            room = length + (fitting & -fitting).bit_length() - 1 if fitting else max_length
            each = room // length
            num = -(-left // each)  # as many rows as are needed, of those that there are
            if fitting:
                stack = np.concatenate(rows_with_room[room])
                num = min(num, len(stack))
                taken = stack[len(stack) - num :][::-1]
                rows_with_room[room] = [stack[: len(stack) - num]] if num < len(stack) else []
                rooms ^= 0 if num < len(stack) else 1 << room
            else:
                taken = np.arange(num_rows, num_rows + num, dtype=small)
                num_rows += num
            last = min(left - each * (num - 1), each)
            left -= each * (num - 1) + last
            placed.append(taken)
            copies.append(np.append(np.full(num - 1, each, dtype=small), small(last)))
            for rows, room_left in ((taken[:-1], room - each * length), (taken[-1:], room - last * length)):
                if room_left and len(rows):
                    rows_with_room[room_left].append(rows)
                    rooms |= 1 << room_left
    return np.concatenate(placed), np.cumsum(np.concatenate(copies), dtype=np.int64), num_rows
