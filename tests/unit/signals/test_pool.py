"""Which examples signals are measured on: other ones at each evaluation, the same on all ranks and in all attempts."""

from pathlib import Path

import numpy as np
import pytest

from tests.unit.data.stores import make_store
from workers.data.store import TokenStore
from workers.signals.meter import SignalPool, number_examples

NAMES = ("red", "green", "blue")


def packed_store(index: int, num_rows: int, examples_per_row: int) -> TokenStore:
    """Rows of several examples of two tokens each."""
    length = 2 * examples_per_row
    ids_RL = np.full((num_rows, length), index, dtype=np.int32)
    positions_RL = np.tile(np.arange(length, dtype=np.uint16) % 2, (num_rows, 1))
    return TokenStore(
        folder=Path(f"packed-{index}"),
        fingerprint=f"packed-{index}",
        num_rows=num_rows,
        num_examples=num_rows * examples_per_row,
        num_tokens=num_rows * length,
        num_loss_tokens=num_rows * examples_per_row,
        max_length=length,
        input_ids=ids_RL,
        position_ids=positions_RL,
        loss_mask=positions_RL > 0,
        row_lengths=np.full(num_rows, length, dtype=np.int32),
        row_loss_tokens=np.full(num_rows, examples_per_row, dtype=np.int32),
        row_examples=np.full(num_rows, examples_per_row, dtype=np.int32),
        manifest={},
    )


def make_pool(seed: int = 0, num_examples: int = 64, micro_batch_size: int = 4) -> SignalPool:
    stores = {"red": make_store(0, 5000), "green": packed_store(1, 300, 20), "blue": make_store(2, 10)}
    return SignalPool(stores, seed, num_examples, micro_batch_size)


def rows_of(pool: SignalPool, step: int) -> dict[str, set[int]]:
    drawn: dict[str, set[int]] = {name: set() for name in NAMES}
    for batch in pool.draw(step):
        assert not drawn[NAMES[batch.domain]] & set(batch.rows), "a row counts twice"
        drawn[NAMES[batch.domain]] |= set(batch.rows)
    return drawn


def test_a_draw_is_a_function_of_seed_domain_and_step() -> None:
    pool = make_pool()
    assert pool.draw(100) == make_pool().draw(100)
    assert pool.draw(100) != make_pool(seed=1).draw(100)
    alone = SignalPool({"red": make_store(0, 5000)}, 0, 64, 4)
    assert {batch.rows for batch in alone.draw(7)} == {b.rows for b in pool.draw(7) if b.domain == 0}


def test_every_evaluation_sees_other_rows_of_a_bounded_pool() -> None:
    pool = make_pool()
    seen: set[int] = set()
    for step in range(0, 5000, 100):
        rows = rows_of(pool, step)["red"]
        assert len(rows) == 64
        assert rows != rows_of(pool, step + 100)["red"]
        seen |= rows
    assert 490 < len(seen) <= 8 * 64
    assert len({row // 1000 for row in seen}) == 5  # from all over the store


def test_packed_rows_count_as_their_examples() -> None:
    """64 examples are 4 rows of 20, not 64 rows; a domain of 10 examples gives all of them."""
    pool = make_pool(micro_batch_size=8)
    for step in (0, 100, 200):
        drawn = rows_of(pool, step)
        assert len(drawn["green"]) == 4
        assert drawn["blue"] == set(range(10))
    of_green = [batch for batch in pool.batches if batch.domain == 1]
    assert sum(batch.num_examples for batch in of_green) == 26 * 20  # the first row count with 8 x 64


@pytest.mark.parametrize("num_examples", [1, 3, 64])
@pytest.mark.parametrize("micro_batch_size", [1, 4, 64])
def test_there_are_enough_examples_and_each_has_a_number(num_examples: int, micro_batch_size: int) -> None:
    pool = make_pool(num_examples=num_examples, micro_batch_size=micro_batch_size)
    numbers = [n for b in pool.batches for n in range(b.first_example, b.first_example + b.num_examples)]
    assert numbers == list(range(pool.num_examples))
    drawn = pool.draw(3)
    for domain, size in enumerate((5000, 6000, 10)):
        num_drawn = sum(batch.num_examples for batch in drawn if batch.domain == domain)
        assert num_drawn >= min(num_examples, size)
        assert num_drawn < num_examples + 20 * micro_batch_size
    assert all(len(batch.rows) <= micro_batch_size for batch in pool.batches)
    assert [batch.num_tokens for batch in drawn] == sorted((batch.num_tokens for batch in drawn), reverse=True)


def test_the_digest_tells_other_examples() -> None:
    assert make_pool().digest == make_pool().digest
    assert len({make_pool(seed=s, micro_batch_size=m).digest for s in (0, 1) for m in (2, 4)}) == 4


def test_examples_are_told_apart_by_their_positions() -> None:
    positions_BL = np.array([[0, 1, 2, 0, 1, 0], [0, 0, 1, 0, 0, 0]], dtype=np.uint16)
    assert number_examples(positions_BL, np.array([5, 3])).tolist() == [[0, 0, 0, 1, 1, -1], [2, 3, 3, -1, -1, -1]]
    assert number_examples(positions_BL, np.array([6, 6]))[1].tolist() == [3, 4, 4, 5, 6, 7]
