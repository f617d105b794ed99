"""In which passes an evaluation measures its sample, and that a batch to be measured holds its rows."""

import numpy as np
import pytest

from tests.unit.data.stores import ROWS_APART, make_store
from tests.unit.validation.test_held_out import MAX_LENGTH, make_examples, store_of
from workers.data.batches import Batch, build_batch
from workers.validation.held_out import draw_sample
from workers.validation.loss_meter import build_evaluation_batches

STORES = {"a": make_store(0, 9), "b": make_store(1, 4), "c": make_store(2, 1)}
IN_ORDER = list(STORES.values())


def rows_of(batch: Batch) -> list[tuple[int, int] | None]:
    """(domain, row) of each row, None for one that only fills up: nothing of it is used."""
    pairs = zip(batch.domain_B.tolist(), batch.row_B.tolist(), batch.loss_mask_BL, strict=True)
    return [(domain, row) if mask_L.any() else None for domain, row, mask_L in pairs]


def length_of(row: tuple[int, int]) -> int:
    return int(IN_ORDER[row[0]].row_lengths[row[1]])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("max_rows", [1, 4, 100, "all"])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 14])
def test_every_example_of_the_samples_is_measured_once_longest_rows_first(
    world_size: int, max_rows: int, micro_batch_size: int
) -> None:
    stores = {"a": store_of(make_examples(0, 40)), "b": store_of(make_examples(1, 9, longest=9)), "c": make_store(2, 1)}
    samples = {name: draw_sample(store, max_rows) for name, store in stores.items()}
    by_rank = [
        build_evaluation_batches(stores, samples, micro_batch_size, rank, world_size) for rank in range(world_size)
    ]
    passes = list(zip(*by_rank, strict=True))  # all ranks make the same number: each is a collective
    num_rows = sum(sample.packing.num_rows for sample in samples.values())
    assert len(passes) == -(-num_rows // (micro_batch_size * world_size))
    batches = [batch for batches in passes for batch in batches]
    measured = [row for batch in batches for row in rows_of(batch.batch)]
    real = measured[:num_rows]
    assert None not in real and len(set(real)) == num_rows and set(measured[num_rows:]) <= {None}
    lengths = [int((example_L >= 0).sum()) for batch in batches for example_L in batch.example_BL]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] <= MAX_LENGTH
    number = 0
    for store, sample in zip(stores.values(), samples.values(), strict=True):
        for e in range(len(sample.example_E)):
            ((batch, b),) = (
                (batch, b)
                for batch in batches
                for b in range(len(batch.example_BL))
                if (batch.example_BL[b] == number).any()
            )
            (columns,) = np.nonzero(batch.example_BL[b] == number)
            place = (sample.row_E[e], slice(sample.start_E[e], sample.start_E[e] + sample.length_E[e]))
            assert columns.tolist() == list(range(columns[0], columns[0] + sample.length_E[e]))
            assert batch.batch.position_ids_BL[b, columns].tolist() == list(range(len(columns)))
            assert np.array_equal(batch.batch.input_ids_BL[b, columns], store.input_ids[place])
            assert np.array_equal(batch.batch.loss_mask_BL[b, columns], store.loss_mask[place])
            number += 1
    assert max(batch.example_BL.max() for batch in batches) == number - 1
    for batch in batches:
        assert not batch.batch.loss_mask_BL[batch.example_BL < 0].any()


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
