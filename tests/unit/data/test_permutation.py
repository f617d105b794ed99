"""Permutations: pure in their key, complete, and the same tomorrow."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from workers.data.permutation import derive_key, hash_uint64, permutation, permutations


@given(st.integers(0, 2**64 - 1), st.integers(1, 300))
def test_every_index_stands_once(key: int, size: int) -> None:
    assert sorted(permutation(np.uint64(key), size)) == list(range(size))


def test_the_order_outlives_releases() -> None:
    # Written down once: a checkpoint of today must be resumed with the same rows by every later version.
    assert int(derive_key(7, "domain", "math", 3)) == 1903454664620266519
    assert permutation(derive_key(7, "domain", "math", 3), 10).tolist() == [2, 7, 5, 1, 8, 0, 3, 6, 4, 9]


def test_the_hash_is_splitmix64() -> None:
    """The first numbers of the published generator from seed 0; large stores need their low bits."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert hash_uint64(np.arange(4, dtype=np.uint64), np.uint64(0)).tolist() == published


def test_keys_tell_their_parts_apart() -> None:
    keys = [("a", "bc"), ("ab", "c"), (1, "2"), ("1", 2), (12,), (1, 2)]
    assert len({int(derive_key(*parts)) for parts in keys}) == len(keys)


def test_many_at_once_equal_one_by_one() -> None:
    keys = np.array([derive_key("step", step) for step in range(20)], dtype=np.uint64)
    assert (permutations(keys, 33) == [permutation(key, 33) for key in keys]).all()


def test_places_are_spread_evenly() -> None:
    keys = np.array([derive_key(seed) for seed in range(4000)], dtype=np.uint64)
    first = np.bincount(permutations(keys, 8)[:, 0], minlength=8)
    assert abs(first - 500).max() < 120  # five standard deviations


@given(st.integers(0, 2**64 - 1))
def test_the_hash_has_no_collisions(key: int) -> None:
    hashed = hash_uint64(np.arange(2000, dtype=np.uint64), np.uint64(key))
    assert len(np.unique(hashed)) == 2000
