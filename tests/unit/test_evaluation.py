"""Which rows an evaluation measures, in which passes, and that a batch to be measured holds them."""

import pytest

from tests.unit.data.stores import ROWS_APART, make_store
from workers.data.batches import Batch
from workers.evaluation import build_batch, build_evaluation_batches

STORES = {"a": make_store(0, 9), "b": make_store(1, 4), "c": make_store(2, 1)}
IN_ORDER = list(STORES.values())


def rows_of(batch: Batch) -> list[tuple[int, int] | None]:
    """(domain, row) of each row, None for one that only fills up: nothing of it is used."""
    pairs = zip(batch.domain_B.tolist(), batch.row_B.tolist(), batch.loss_mask_BL, strict=True)
    return [(domain, row) if mask_L.any() else None for domain, row, mask_L in pairs]


def length_of(row: tuple[int, int]) -> int:
    return int(IN_ORDER[row[0]].row_lengths[row[1]])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("max_rows", "num_rows"), [(1, 3), (4, 9), (8, 13), (9, 14), (100, 14)])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 14])
def test_the_first_rows_of_each_domain_are_measured_once_longest_first(
    world_size: int, max_rows: int, num_rows: int, micro_batch_size: int
) -> None:
    by_rank = [
        build_evaluation_batches(STORES, max_rows, micro_batch_size, rank, world_size) for rank in range(world_size)
    ]
    passes = list(zip(*by_rank, strict=True))  # all ranks make the same number: each is a collective
    assert len(passes) == -(-num_rows // (micro_batch_size * world_size))
    measured = [row for batches in passes for batch in batches for row in rows_of(batch)]
    real = measured[:num_rows]
    assert None not in real and set(measured[num_rows:]) <= {None}
    first = [(d, row) for d, store in enumerate(IN_ORDER) for row in range(min(max_rows, store.num_rows))]
    for batch in (batch for batches in passes for batch in batches):
        lengths = [length_of(row) for row in rows_of(batch) if row is not None]
        assert batch.input_ids_BL.shape == (micro_batch_size, max(lengths, default=1))
    assert real == sorted(first, key=lambda row: -length_of(row))  # of like length: in the order of the stores


def test_a_batch_holds_its_rows_and_no_padding_counts() -> None:
    rows = [(0, 4), None, (1, 2), (2, 0)]
    batch = build_batch(IN_ORDER, rows)
    longest = max(length_of(row) for row in rows if row is not None)
    for array in (batch.input_ids_BL, batch.position_ids_BL, batch.loss_mask_BL):
        assert array.shape == (4, longest)
    for b, row in enumerate(rows):
        used = 0 if row is None else length_of(row)
        if row is not None:
            assert set(batch.input_ids_BL[b, :used].tolist()) == {row[0] * ROWS_APART + row[1]}
        assert batch.position_ids_BL[b, :used].tolist() == list(range(used))
        assert batch.loss_mask_BL[b].tolist() == [0 < i < used for i in range(longest)]
        for array in (batch.input_ids_BL, batch.position_ids_BL):
            assert (array[b, used:] == 0).all()  # a token and a position that every model has
    assert rows_of(batch) == rows
    assert batch.domain_B.tolist() == [0, 0, 1, 2] and batch.row_B.tolist() == [4, 0, 2, 0]
    assert batch.global_loss_tokens == sum(length_of(row) - 1 for row in rows if row is not None)
    # It is no part of the training: it belongs to no step, and no domain has given rows for it.
    assert (batch.step, batch.weights_version, batch.global_tokens) == (0, 0, 0)
    assert batch.global_rows_D.tolist() == batch.domain_rows_seen_D.tolist() == [0, 0, 0]


def test_a_batch_that_only_fills_up_is_one_token_long() -> None:
    """With more ranks than rows some measure nothing, and a model cannot take rows of no tokens."""
    batch = build_batch(IN_ORDER, [None, None])
    assert batch.input_ids_BL.tolist() == [[0], [0]]
    assert rows_of(batch) == [None, None] and batch.global_loss_tokens == 0
