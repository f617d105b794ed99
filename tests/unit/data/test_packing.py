"""Packing: whole examples, each once, no row too long, few rows, always the same, quick."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.data.packing import Packing, RowAssignment, count_lengths, pack_examples


def row_lengths(packing: Packing, lengths: np.ndarray) -> list[int]:
    return [int(part.sum()) for part in np.split(lengths[packing.examples], packing.offsets[1:-1])]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=200), st.integers(40, 90))
def test_every_example_once_and_no_row_too_long(values: list[int], max_length: int) -> None:
    lengths = np.array(values, dtype=np.int32)
    packing = pack_examples(lengths, max_length)
    assert sorted(packing.examples) == list(range(len(values)))
    used = row_lengths(packing, lengths)
    assert min(used) > 0 and max(used) <= max_length
    # Two rows that are half empty would fit into one.
    assert sum(1 for length in used if 2 * length <= max_length) <= 1


def rows_of(lengths: list[int], max_length: int) -> list[list[int]]:
    packing = pack_examples(np.array(lengths, dtype=np.int32), max_length)
    return [sorted(part.tolist()) for part in np.split(packing.examples, packing.offsets[1:-1])]


def test_best_fit_takes_the_fullest_row_that_has_room() -> None:
    assert rows_of([7, 6, 3, 4, 2], 10) == [[0, 2], [1, 3], [4]]
    assert rows_of([7, 6, 3], 10) == [[0, 2], [1]]  # room for 3 and for 4: the fuller one was opened first
    assert rows_of([12, 10, 9, 1], 20) == [[0], [1, 2, 3]]  # room for 8 and for 1: it was opened last


def test_of_equally_full_rows_the_one_opened_last_is_taken() -> None:
    assert rows_of([6, 6, 6, 3, 3], 10) == [[0], [1, 4], [2, 3]]


def place_one_by_one(lengths: list[int], max_length: int) -> list[int]:
    """The row of each example, by the rule: the smallest sufficient room, and the row that reached it last."""
    rooms: list[tuple[int, int]] = []  # (room, row), the latest last
    rows = [0] * len(lengths)
    num_rows = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        fitting = [room for room, _ in rooms if room >= lengths[index]]
        if fitting:
            place = max(at for at, (room, _) in enumerate(rooms) if room == min(fitting))
            room, row = rooms.pop(place)
        else:
            room, row, num_rows = max_length, num_rows, num_rows + 1
        rows[index] = row
        rooms.append((room - lengths[index], row))
    return rows


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(1, 30), max_size=120), st.integers(30, 64), st.integers(1, 50))
def test_placing_equal_lengths_together_and_in_blocks_is_placing_one_by_one(
    values: list[int], max_length: int, per_block: int
) -> None:
    lengths = np.array(values, dtype=np.int32)
    assignment = RowAssignment(count_lengths(lengths, max_length))
    blocks = [lengths[start : start + per_block] for start in range(0, len(lengths), per_block)]
    rows = [row for block in blocks for row in assignment.take(block).tolist()]
    assert rows == place_one_by_one(values, max_length)


def test_without_packing_a_row_holds_one_example() -> None:
    packing = pack_examples(np.array([3, 1, 2], dtype=np.int32), 8, packing=False)
    assert packing.examples.tolist() == [0, 1, 2] and packing.offsets.tolist() == [0, 1, 2, 3]


def test_a_hundred_thousand_examples_in_well_under_two_seconds() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5.3, 0.8, 100_000), 1, 2048).astype(np.int32)
    start = time.process_time()
    packing = pack_examples(lengths, 2048)
    assert time.process_time() - start < 1.0
    assert lengths.sum() / (packing.num_rows * 2048) > 0.99
    again = pack_examples(lengths, 2048)
    assert np.array_equal(again.examples, packing.examples) and np.array_equal(again.offsets, packing.offsets)


def test_an_example_that_fits_no_row_is_an_error() -> None:
    with pytest.raises(ValueError, match="9 do not fit rows of 8"):
        pack_examples(np.array([3, 9], dtype=np.int32), 8)
