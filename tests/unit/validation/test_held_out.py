"""Which held-out examples are measured: a sample that follows from the data alone, and fits into its rows."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from workers.data.packing import pack_examples
from workers.data.permutation import derive_key
from workers.data.store import TokenStore
from workers.validation.held_out import draw_sample

MAX_LENGTH = 64
Example = tuple[list[int], list[bool]]


def make_examples(seed: int, count: int, longest: int = 40) -> list[Example]:
    """Tokens and targets; token ids say nothing of the length."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, longest, count)
    return [(rng.integers(1, 500, n).tolist(), [False, True, *(rng.random(n - 2) < 0.7).tolist()]) for n in lengths]


def store_of(examples: list[Example], max_length: int = MAX_LENGTH, is_packed: bool = True) -> TokenStore:
    """The store that the preparation would build of them."""
    lengths = np.array([len(ids) for ids, _ in examples], dtype=np.int32)
    packing = pack_examples(lengths, max_length, is_packed)
    shape = (packing.num_rows, max_length)
    ids_RL, positions_RL, mask_RL = np.zeros(shape, np.int32), np.zeros(shape, np.uint16), np.zeros(shape, np.bool_)
    lengths_R = np.zeros(packing.num_rows, np.int32)
    for row in range(packing.num_rows):
        for index in packing.examples[packing.offsets[row] : packing.offsets[row + 1]]:
            used = slice(lengths_R[row], lengths_R[row] + lengths[index])
            ids_RL[row, used], mask_RL[row, used] = examples[index]
            positions_RL[row, used] = np.arange(lengths[index])
            lengths_R[row] = used.stop
    return TokenStore(
        Path("made"),
        "made",
        packing.num_rows,
        len(examples),
        int(lengths.sum()),
        int(mask_RL.sum()),
        max_length,
        ids_RL,
        positions_RL,
        mask_RL,
        lengths_R,
        mask_RL.sum(axis=1).astype(np.int32),
        np.diff(packing.offsets).astype(np.int32),
        {},
    )


def drawn(store: TokenStore, max_rows: int, key: int | None = None) -> list[tuple[tuple[int, ...], tuple[bool, ...]]]:
    """The examples of a sample, read back from the store, in the order in which they were drawn."""
    sample = draw_sample(store, max_rows) if key is None else draw_sample(store, max_rows, derive_key(key))
    found = []
    for row, start, length, tokens in zip(
        sample.row_E, sample.start_E, sample.length_E, sample.num_tokens_E, strict=True
    ):
        place = (row, slice(start, start + length))
        assert store.loss_mask[place].sum() == tokens
        found.append((tuple(store.input_ids[place].tolist()), tuple(store.loss_mask[place].tolist())))
    return found


def as_tuples(examples: list[Example]) -> list[tuple[tuple[int, ...], tuple[bool, ...]]]:
    return [(tuple(ids), tuple(mask)) for ids, mask in examples]


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("max_rows", [1, 2, 7, 20])
def test_it_holds_as_many_examples_as_fit_into_its_rows(max_rows: int, is_packed: bool) -> None:
    examples = make_examples(0, 200)
    store = store_of(examples, is_packed=is_packed)
    sample = draw_sample(store, max_rows)
    assert sample.num_held_out == 200
    assert sample.packing.num_rows == max_rows
    lengths = [
        sample.length_E[sample.packing.examples[a:b]].sum()
        for a, b in zip(sample.packing.offsets[:-1], sample.packing.offsets[1:], strict=True)
    ]
    assert lengths == sample.row_lengths.tolist() and max(lengths) <= MAX_LENGTH
    assert sorted(sample.packing.examples.tolist()) == list(range(len(sample.example_E)))
    if not is_packed:
        assert len(sample.example_E) == max_rows
    else:
        more = np.array([len(ids) for ids, _ in drawn(store, max_rows + 3)][: len(sample.example_E) + 1], np.int32)
        assert pack_examples(more, MAX_LENGTH).num_rows == max_rows + 1  # not one more would have fitted


@pytest.mark.parametrize("is_packed", [True, False])
def test_all_and_more_rows_than_there_are_take_every_example(is_packed: bool) -> None:
    examples = make_examples(1, 60)
    store = store_of(examples, is_packed=is_packed)
    for max_rows in ("all", store.num_rows, 10_000):
        assert sorted(drawn(store, max_rows)) == sorted(as_tuples(examples))  # type: ignore[arg-type]


def test_it_follows_from_the_examples_alone() -> None:
    """Not from the order of the files, nor from how the store packs them or how long its rows are."""
    examples = make_examples(2, 120)
    expected = drawn(store_of(examples), 10)
    shuffled = [examples[i] for i in np.random.default_rng(3).permutation(120)]
    assert drawn(store_of(shuffled), 10) == expected
    assert drawn(store_of(shuffled, is_packed=False), 10) == expected[:10]
    wide = drawn(store_of(shuffled, max_length=128), 10)
    assert wide[: len(expected)] == expected and len(wide) > len(expected)
    narrow = drawn(store_of(shuffled), 4)
    assert narrow == expected[: len(narrow)]
    assert set(drawn(store_of(examples), 10, key=1)) != set(expected)


def test_every_example_is_as_likely_however_long_it_is() -> None:
    examples = make_examples(4, 300)
    store, lengths = store_of(examples), np.array([len(ids) for ids, _ in examples])
    times = np.zeros(300)
    number = {example: i for i, example in enumerate(as_tuples(examples))}
    num_draws = 150
    for key in range(num_draws):
        for example in drawn(store, 30, key):
            times[number[example]] += 1
    share = times.sum() / 300 / num_draws
    spread = np.sqrt(share * (1 - share) * num_draws)
    assert np.abs(times - share * num_draws).max() < 4.5 * spread
    for long in (lengths > np.quantile(lengths, 0.8), lengths < np.quantile(lengths, 0.2)):
        assert times[long].mean() == pytest.approx(share * num_draws, rel=0.05)


def test_repeats_are_told_apart_and_examples_without_a_target_are_left_out() -> None:
    kept = make_examples(5, 4)
    without = [([7, 8, 9], [False, False, False])] * 3
    other_targets = (kept[0][0], [False, *[True] * (len(kept[0][0]) - 1)])
    store = store_of([*kept, *without, *[kept[0]] * 5, other_targets])
    sample = draw_sample(store, "all")
    assert sample.num_held_out == len(set(sample.example_E.tolist())) == 10
    assert sorted(drawn(store, 100)) == sorted(as_tuples([*kept, *[kept[0]] * 5, other_targets]))


def test_identities_stay_the_same_for_ever() -> None:
    """Evaluations on disk are compared by them. Worked out in plain Python from the definition."""
    ids, mask = [5, 6, 5], [False, True, True]
    words = 2**64

    def mixed(value: int, key: int) -> int:
        x = ((value + 1) * 0x9E3779B97F4A7C15 + key) % words
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % words
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % words
        return x ^ (x >> 31)

    key = int(derive_key("held-out example"))
    expected = sum(mixed(p << 33 | i << 1 | m, key) for p, (i, m) in enumerate(zip(ids, mask, strict=True))) % words
    assert draw_sample(store_of([(ids, mask), *make_examples(6, 3)]), "all").example_E.tolist().count(expected) == 1
    twice = draw_sample(store_of([(ids, mask)] * 2), "all").example_E
    assert sorted(twice.tolist()) == sorted([expected, mixed(expected, 1)])


def test_a_store_is_read_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(make_examples(7, 90))
    whole = draw_sample(store, 9)
    monkeypatch.setattr("workers.validation.held_out._BLOCK_TOKENS", 3 * MAX_LENGTH)
    in_blocks = draw_sample(store, 9)
    arrays: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = [
        (getattr(whole, name), getattr(in_blocks, name)) for name in ("row_E", "place_E", "start_E", "example_E")
    ]
    assert all(np.array_equal(one, other) for one, other in arrays)
