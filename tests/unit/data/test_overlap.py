"""What domains have in common, against the sets of Python."""

import numpy as np
import pytest

from workers.data import overlap
from workers.data.overlap import find_shared, find_within


def make_hashes(rng: np.random.Generator, num_domains: int, span: int) -> dict[str, np.ndarray]:
    top = 2**64 - span  # the last bits: where a look-up in floats would go wrong
    sizes = rng.integers(0, 40, num_domains)
    numbers = [np.unique(rng.integers(0, span, size).astype(np.uint64)) + np.uint64(top) for size in sizes]
    return {f"d{index}": array for index, array in enumerate(numbers)}


@pytest.mark.parametrize("seed", range(20))
def test_what_is_sought_is_counted_in_every_place(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sought, places = make_hashes(rng, 4, 60), make_hashes(rng, 6, 60)
    sets = {name: set(hashes.tolist()) for name, hashes in places.items()}
    for name, found in find_within(sought, places).items():
        mine = set(sought[name].tolist())
        expected = {place: len(mine & hashes) for place, hashes in sets.items() if mine & hashes}
        assert found.by_domain == expected
        assert found.num_any == len(mine & set().union(*sets.values()))


@pytest.mark.parametrize("seed", range(20))
def test_what_domains_share_is_counted_for_each_pair(seed: int) -> None:
    domains = make_hashes(np.random.default_rng(seed), 5, 80)
    sets = {name: set(hashes.tolist()) for name, hashes in domains.items()}
    for name, found in find_shared(domains).items():
        others = {other: hashes for other, hashes in sets.items() if other != name}
        assert found.by_domain == {
            other: len(sets[name] & hashes) for other, hashes in others.items() if sets[name] & hashes
        }
        assert found.num_any == len(sets[name] & set().union(*others.values()))


@pytest.mark.parametrize("seed", range(5))
def test_what_is_shared_is_added_up_over_ranges_of_hashes(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    domains = {name: np.unique(rng.integers(0, 80, 30).astype(np.uint64) << np.uint64(57)) for name in "abc"}
    whole = find_shared(domains)
    monkeypatch.setattr(overlap, "_HASHES_PER_RANGE", 7)
    assert find_shared(domains) == whole and sum(found.num_any for found in whole.values()) > 10


def test_nothing_to_look_at() -> None:
    empty = np.empty(0, np.uint64)
    assert find_shared({}) == {} and find_within({}, {"a": empty}) == {}
    assert find_within({"a": empty}, {})["a"].num_any == 0
    assert find_shared({"a": empty, "b": empty})["a"].num_any == 0
