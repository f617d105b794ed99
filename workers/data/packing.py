"""Which examples share a row (sequence): best fit, longest first.

Every example goes whole into the fullest row that has room for it (Johnson 1974: at most 11/9 of the fewest rows, and
within one per cent of it on real lengths). Ties go to the row that reached that room last, and examples of equal length
keep their order, so the result depends on the lengths alone.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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
    num_examples = len(lengths)
    if num_examples and not 0 < lengths.min() <= lengths.max() <= max_length:
        raise ValueError(f"lengths {lengths.min()} to {lengths.max()} do not fit rows of {max_length} tokens")
    if not packing:
        return Packing(np.arange(num_examples), np.arange(num_examples + 1))
    longest_first = np.argsort(-lengths.astype(np.int64), kind="stable")
    rows = np.empty(num_examples, dtype=np.int64)
    rows[longest_first] = _best_fit(lengths[longest_first].tolist(), max_length)
    counts = np.bincount(rows, minlength=0)
    return Packing(np.argsort(rows, kind="stable"), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def _best_fit(lengths: list[int], max_length: int) -> list[int]:
    """The row of each example, given their lengths in order."""
    rows_with_room: list[list[int]] = [[] for _ in range(max_length + 1)]
    rooms = 0  # bit r is set where some row has room for exactly r more tokens
    rows, num_rows = [], 0
    for length in lengths:
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = max_length, num_rows
            num_rows += 1
        rows.append(row)
        if room > length:
            rows_with_room[room - length].append(row)
            rooms |= 1 << (room - length)
    return rows
