"""Batches come from the mix in force at their step, whatever was gathered ahead, and hold the rows that they say."""

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.data.stores import MAX_LENGTH, ROWS_APART, make_schedule, make_store, weights
from workers.contracts import DomainWeights
from workers.data import batches
from workers.data.batches import Batch, BatchLoader
from workers.data.store import STORE_VERSION, TokenStore

SIZES = {"a": 30, "b": 17, "c": 5}
STORES = [make_store(index, size) for index, size in enumerate(SIZES.values())]


@contextmanager
def loader(
    rows_per_step: int = 8, rank: int = 0, world_size: int = 1, horizon: int = 10**6, stores: Any = STORES
) -> Iterator[BatchLoader]:
    made = BatchLoader(stores, make_schedule(SIZES, rows_per_step), rank, world_size, horizon)
    yield made
    made.close()


def assert_content(batch: Batch) -> None:
    """The tensors hold the rows that the batch names, trimmed to the longest."""
    lengths = [int(STORES[d].row_lengths[r]) for d, r in zip(batch.domain_B, batch.row_B, strict=True)]
    assert batch.input_ids_BL.shape == (len(batch.row_B), max(lengths))
    for b, length in enumerate(lengths):
        assert (batch.input_ids_BL[b, :length] == batch.domain_B[b] * ROWS_APART + batch.row_B[b]).all()
        assert (batch.input_ids_BL[b, length:] == -1).all()
        assert batch.position_ids_BL[b, :length].tolist() == list(range(length))
        assert batch.loss_mask_BL[b].sum() == length - 1


def expected_rows(journal: list[DomainWeights], rows_per_step: int, step: int) -> tuple[int, list[int], list[int]]:
    schedule = make_schedule(SIZES, rows_per_step)
    for version in journal:
        if version.effective_step <= step:
            schedule.announce(version)
    rows = schedule.rows(step)
    return rows.weights_version, rows.domain_SB[0].tolist(), rows.row_SB[0].tolist()


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 3, 7, 50, 10**6]), st.booleans(), st.integers(1, 9))
def test_no_batch_of_an_old_mix_after_its_announcement(seed: int, horizon: int, jumps: bool, rows: int) -> None:
    """Versions come at any moment, for the next step or one far ahead, while blocks are gathered or handed out."""
    choice = random.Random(seed)
    journal: list[DomainWeights] = []
    with loader(rows, horizon=horizon) as made:
        step = 1
        for _ in range(40):
            if not journal or choice.random() < 0.3:
                earliest = max(step, journal[-1].effective_step) if journal else 1
                at = 1 if not journal else earliest + choice.choice([0, 0, 1, 5, 20])
                shares = {name: choice.choice([0.0, 0.2, 1.0]) for name in SIZES} | {"a": 0.1}
                journal.append(weights(len(journal), at, **shares))
                if choice.random() < 0.5:
                    time.sleep(choice.choice([0, 0.0005]))  # let the thread finish, or not
                made.announce(journal[-1])
                made.announce(choice.choice(journal))
            batch = made.get(step)
            number, domains, row_ids = expected_rows(journal, rows, step)
            assert (batch.step, batch.weights_version) == (step, number)
            assert (batch.domain_B.tolist(), batch.row_B.tolist()) == (domains, row_ids)
            assert_content(batch)
            step += choice.choice([1, 1, 1, 9]) if jumps else 1


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_slices_of_all_ranks_are_the_global_batch(world_size: int) -> None:
    journal = [weights(0, 1, a=3, b=2, c=1), weights(1, 14, a=0, b=1, c=1)]
    parts: list[list[Batch]] = []
    for rank in range(world_size):
        with loader(8, rank, world_size) as made:
            for version in journal:
                made.announce(version)
            mine = []
            for step in range(1, 41):
                mine.append(made.get(step))
                assert_content(mine[-1])
            parts.append(mine)
    for step in range(1, 41):
        together = [batch[step - 1] for batch in parts]
        number, domains, row_ids = expected_rows(journal, 8, step)
        assert [d for batch in together for d in batch.domain_B.tolist()] == domains
        assert [r for batch in together for r in batch.row_B.tolist()] == row_ids
        loss_tokens = sum(int(STORES[d].row_loss_tokens[r]) for d, r in zip(domains, row_ids, strict=True))
        tokens = sum(int(STORES[d].row_lengths[r]) for d, r in zip(domains, row_ids, strict=True))
        for batch in together:
            assert (batch.global_loss_tokens, batch.global_tokens) == (loss_tokens, tokens)
            assert batch.global_rows_D.tolist() == np.bincount(domains, minlength=3).tolist()
            assert batch.weights_version == number


def test_a_batch_in_hand_stays_whole_while_versions_make_gathers_void(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow gather that a version made void must not write into a buffer that came round again."""
    copy_rows = batches._copy_rows

    def slowly(*arguments: Any) -> None:
        if current_thread() is not main_thread():
            time.sleep(0.01)
        copy_rows(*arguments)

    monkeypatch.setattr(batches, "_copy_rows", slowly)
    with loader(8) as made:
        for step in range(1, 25):
            made.announce(weights(step - 1, step, a=1, b=step, c=1))
            batch = made.get(step)
            time.sleep(0.002)
            assert_content(batch)


def test_the_last_batch_stays_whole_while_the_next_ones_block_and_the_one_behind_it_are_gathered() -> None:
    """Where every block that was gathered ahead is void, the fourth buffer is the one of the batch before."""
    with loader(8) as made:
        made.announce(weights(0, 1, a=1, b=1, c=1))
        before = made.get(1)
        for step in range(2, 12):
            assert made._ahead is not None
            made._ahead.result()
            made.announce(weights(step - 1, step, a=1, b=step, c=1))
            batch = made.get(step)
            assert made._ahead is not None
            made._ahead.result()
            assert_content(before)
            assert_content(batch)
            before = batch


# A row of 12 tokens takes 12 * (4 + 2 + 1) bytes, the two rows of this rank twice as many.
@pytest.mark.parametrize(
    ("block_bytes", "num_steps"), [(1, 1), (335, 1), (336, 2), (839, 4), (16 * 168, 16), (17 * 168, 16)]
)
def test_a_block_holds_the_steps_that_fit_but_one_at_least_and_sixteen_at_most(
    block_bytes: int, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_BLOCK_BYTES", block_bytes)
    with loader(8, rank=1, world_size=4) as made:
        made.announce(weights(0, 1, a=1, b=1, c=1))
        assert_content(made.get(1))
        assert made._ahead is not None
        assert [batch.step for batch in made._ahead.result()] == list(range(2, 2 + num_steps))
        for step in range(2, 40):
            assert_content(made.get(step))


def test_nothing_is_gathered_across_the_horizon() -> None:
    with loader(4, horizon=5) as made:
        made.announce(weights(0, 1, a=1, b=1, c=1))
        for step in range(1, 6):
            made.get(step)
        assert made._ahead is None
        made.get(6)
        assert made._ahead is not None


def test_another_content_for_a_known_version_is_refused() -> None:
    with loader() as made:
        made.announce(weights(0, 1, a=1, b=1, c=1))
        with pytest.raises(ValueError, match="weights version 0"):
            made.announce(weights(0, 1, a=2, b=1, c=1))


def test_ranks_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="8 rows per step cannot be split over 3 ranks"):
        BatchLoader(STORES, make_schedule(SIZES, 8), 0, 3, 10)


def test_a_store_on_disk_gives_the_same_batches(tmp_path: Path) -> None:
    mapped = []
    for store in STORES:
        folder = tmp_path / str(store.folder)
        folder.mkdir()
        names = ("input_ids", "position_ids", "loss_mask", "row_lengths", "row_loss_tokens", "row_examples")
        for name in names:
            np.save(folder / f"{name}.npy", getattr(store, name))
        counts = ("fingerprint", "num_rows", "num_examples", "num_tokens", "num_loss_tokens", "max_length")
        sizes = {name: (folder / f"{name}.npy").stat().st_size for name in names}
        manifest = {"store_version": STORE_VERSION, "array_bytes": sizes} | {key: getattr(store, key) for key in counts}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        mapped.append(TokenStore.open(folder))
    with loader(stores=mapped) as made:
        made.announce(weights(0, 1, a=1, b=1, c=1))
        for step in range(1, 30):
            assert_content(made.get(step))


def test_the_longest_row_may_fill_the_store() -> None:
    assert max(int(store.row_lengths.max()) for store in STORES) == MAX_LENGTH
