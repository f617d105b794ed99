"""What a streamed domain's draws are does not depend on when its parts became known."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.data.stores import ROWS_APART, make_store, weights
from tests.unit.data.test_schedule import journals, read
from workers.contracts import DomainWeights
from workers.data.batches import BatchLoader
from workers.data.permutation import derive_key, permutation
from workers.data.schedule import DomainRows, Schedule

NUM_STEPS = 60
WHOLE = {"b": 40, "c": 11, "d": 1}
PARTS = st.lists(st.integers(0, 25), min_size=1, max_size=6).map(lambda sizes: [7, *sizes])


def begin(parts: list[int], rows_per_step: int, journal: list[DomainWeights], seed: int = 0) -> Schedule:
    """A schedule over the streamed domain `a`, of which the first part is known, and three others."""
    domains = [DomainRows("a", parts[0], 1.0, False), *(DomainRows(name, size, 1.0) for name, size in WHOLE.items())]
    schedule = Schedule(seed, domains, rows_per_step)
    for version in journal:
        schedule.announce(version)
    return schedule


def whole(parts: list[int], rows_per_step: int, journal: list[DomainWeights], seed: int = 0) -> Schedule:
    schedule = begin(parts, rows_per_step, journal, seed)
    for number, size in enumerate(parts[1:], start=2):
        schedule.add_part(0, size, number == len(parts))
    return schedule


@settings(max_examples=25, deadline=None)
@given(PARTS, journals(NUM_STEPS), st.integers(1, 20), st.integers(0, 2**32), st.data())
def test_the_draws_are_the_same_whenever_a_part_is_known(
    parts: list[int], journal: list[DomainWeights], rows_per_step: int, seed: int, data: Any
) -> None:
    expected = read(whole(parts, rows_per_step, journal, seed), 1, NUM_STEPS)
    choice = data.draw(st.randoms(use_true_random=False))
    schedule, num_known, found, step = begin(parts, rows_per_step, journal, seed), 1, {}, 1
    while step <= NUM_STEPS:
        is_needed = schedule.find_lacking(step) == 0
        if num_known < len(parts) and (is_needed or choice.random() < 0.1):
            schedule.add_part(0, parts[num_known], num_known + 1 == len(parts))
            num_known += 1
            continue
        assert not is_needed
        num_steps = schedule.num_covered(step, min(choice.randint(1, 9), NUM_STEPS + 1 - step))
        assert num_steps > 0
        rows = read(schedule, step, step + schedule.rows(step, num_steps).num_steps - 1)
        found |= rows
        step += len(rows)
    assert found == expected


@settings(max_examples=25, deadline=None)
@given(PARTS, st.integers(0, 2**32))
def test_the_parts_come_in_order_each_in_its_own_permutation(parts: list[int], seed: int) -> None:
    journal = [weights(0, 1, a=1.0, b=0.0, c=0.0, d=0.0)]
    num_rows = sum(parts)
    drawn = [rows[0] for _, _, rows in read(whole(parts, 1, journal, seed), 1, 2 * num_rows).values()]
    expected, turn = [], 0
    for _ in range(2):  # epochs
        start = 0
        for size in parts:
            expected += [start + place for place in permutation(derive_key(seed, "domain", "a", turn), size).tolist()]
            start, turn = start + size, turn + 1
    assert drawn == expected
    assert Counter(drawn) == dict.fromkeys(range(num_rows), 2)


def test_a_stream_leaves_the_shares_and_the_draws_of_the_others_as_they_are() -> None:
    journal = [weights(0, 1, a=3.0, b=1.0, c=1.0, d=0.2), weights(1, 20, a=1.0, b=2.0, c=1.0, d=0.5)]
    streamed = whole([7, 9, 24], 8, journal)
    stored = Schedule(0, [DomainRows(name, size, 1.0) for name, size in {"a": 40, **WHOLE}.items()], 8)
    for version in journal:
        stored.announce(version)
    for step in range(1, NUM_STEPS + 1):
        one, other = streamed.rows(step), stored.rows(step)
        assert (one.taken_SD == other.taken_SD).all() and (one.domain_SB == other.domain_SB).all()
        is_other = one.domain_SB > 0
        assert (one.row_SB[is_other] == other.row_SB[is_other]).all()


def test_rows_of_an_unknown_part_are_refused_and_the_last_part_ends_the_stream() -> None:
    schedule = begin([7, 5], 8, [weights(0, 1, a=1.0, b=0.0, c=0.0, d=0.0)])
    assert schedule.find_lacking(1) == 0 and schedule.num_covered(1, 5) == 0
    with pytest.raises(ValueError, match="'a': draw 7 is in a part that is not known"):
        schedule.rows(1)
    schedule.add_part(0, 5, True)
    assert schedule.find_lacking(50) is None and schedule.num_covered(1, 5) == 5
    with pytest.raises(ValueError, match="behind the last one"):
        schedule.add_part(0, 5, True)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_loader_returns_the_rows_of_all_parts_and_gathers_ahead_only_what_is_known(world_size: int) -> None:
    journal = [weights(0, 1, a=2.0, b=1.0, c=1.0, d=0.3)]
    sizes = [7, 13, 0, 30]
    expected = read(whole(sizes, 8, journal), 1, NUM_STEPS)
    # Rows of the parts are numbered on, so that the content of part 1 goes on behind that of part 0.
    all_rows = make_store(0, sum(sizes))
    ends = np.cumsum(sizes)
    parts = [_slice(all_rows, slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    others = [make_store(index, size) for index, size in enumerate(WHOLE.values(), start=1)]
    for rank in range(world_size):
        loader = BatchLoader([parts[0], *others], begin(sizes, 8, []), rank, world_size, horizon=10**6)
        loader.announce(journal[0])
        for step in range(1, NUM_STEPS + 1):
            while loader.find_lacking(step) == 0:
                number = loader.num_parts(0)
                loader.add_part(0, parts[number], number + 1 == len(parts))
            batch = loader.get(step)
            mine = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
            _, domains, rows = expected[step]
            assert (batch.domain_B.tolist(), batch.row_B.tolist()) == (domains[mine], rows[mine])
            assert (batch.input_ids_BL[:, 0] == batch.domain_B * ROWS_APART + batch.row_B).all()
        loader.close()


def _slice(store: Any, rows: slice) -> Any:
    names = ("input_ids", "position_ids", "loss_mask", "row_lengths", "row_loss_tokens", "row_examples")
    return replace(store, num_rows=rows.stop - rows.start, **{name: getattr(store, name)[rows] for name in names})
