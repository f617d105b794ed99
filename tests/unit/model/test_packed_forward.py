"""Forward passes over packed rows: whole rows, rows in one sequence, and single examples hold the same targets."""

from dataclasses import replace

import numpy as np
import pytest

from tests.integration.zero_cases import global_batch
from workers.data.batches import Batch
from workers.model.forward_pass import ForwardPass, idle_pass, single_examples, whole_rows


def targets(batch: Batch) -> list[tuple[int, int, int]]:
    """(place in the flattened rows, token id, domain) of each target, from the batch itself."""
    row_N, column_N = np.nonzero(batch.loss_mask_BL)
    width = batch.input_ids_BL.shape[1]
    ids = batch.input_ids_BL[row_N, column_N]
    return sorted(zip((row_N * width + column_N).tolist(), ids.tolist(), batch.domain_B[row_N].tolist(), strict=True))


def found(passes: list[ForwardPass]) -> list[tuple[int, int, int]]:
    return sorted(
        entry
        for one in passes
        for entry in zip(one.target_origin_N.tolist(), one.target_N.tolist(), one.domain_N.tolist(), strict=True)
    )


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("cut", [True, False])
def test_every_way_holds_the_targets_of_the_batch_once(step: int, cut: bool) -> None:
    batch = global_batch(step)
    rows = list(whole_rows(batch, 2, cut))
    for passes in (rows, [one.in_one_sequence() for one in rows], list(single_examples(batch, 80, cut))):
        assert found(passes) == targets(batch)
        for one in passes:
            ids = batch.input_ids_BL.ravel()
            is_read = one.origin_SL >= 0
            assert (one.input_ids_SL[is_read] == ids[one.origin_SL[is_read]]).all()


def test_a_single_example_is_read_up_to_what_predicts_its_last_target() -> None:
    batch = global_batch(1)
    positions, mask, ids = (a[4] for a in (batch.position_ids_BL, batch.loss_mask_BL, batch.input_ids_BL))
    starts = np.flatnonzero(positions == 0)[:3]
    expected = [
        ids[start : start + np.flatnonzero(mask[start:end])[-1]].tolist()
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)
        if mask[start:end].any()
    ]
    one_row = replace(
        batch,
        **{name: getattr(batch, name)[4:5] for name in ("input_ids_BL", "position_ids_BL", "loss_mask_BL")},
        domain_B=batch.domain_B[4:5],
    )
    passes = list(single_examples(one_row, tokens_per_pass=1))
    assert sorted(one.input_ids_SL.tolist()[0] for one in passes) == sorted(expected)
    assert all(one.position_ids_SL[0].tolist() == list(range(one.input_ids_SL.shape[1])) for one in passes)


def test_passes_of_single_examples_hold_no_more_tokens_than_asked_for_unless_one_example_does() -> None:
    passes = list(single_examples(global_batch(2), tokens_per_pass=30))
    assert all(one.input_ids_SL.size <= 30 or len(one.input_ids_SL) == 1 for one in passes)
    lengths = [one.input_ids_SL.shape[1] for one in passes]
    assert lengths == sorted(lengths, reverse=True)
    assert any(len(one.input_ids_SL) > 1 for one in passes)


def test_padding_is_told_from_tokens() -> None:
    batch = global_batch(1)
    used = (batch.input_ids_BL > 0).sum()  # ids of this batch start from 1, padding is 0
    assert sum(one.is_used_SL.sum() for one in whole_rows(batch, 3, cut=False)) == used
    assert sum(one.is_used_SL.sum() for one in single_examples(batch, 80, cut=False)) == used - 0
    assert not idle_pass().is_used_SL.any()
    assert found([idle_pass()]) == []
