"""What domains have in common, by the hashes in their stores, which are distinct and ascending.

Sorted arrays are searched in each other, so comparing stores of a million examples takes a fraction of a second and
reads nothing but their hashes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_HASHES_PER_RANGE = 2**20
Hashes = NDArray[np.uint64]
"""(N,) distinct, ascending."""


@dataclass
class Overlap:
    """How many of one domain's hashes other domains also have."""

    num_any: int = 0  # hashes that at least one other has
    by_domain: dict[str, int] = field(default_factory=dict)  # hashes shared with each other domain, if any


def find_within(sought: Mapping[str, Hashes], places: Mapping[str, Hashes]) -> dict[str, Overlap]:
    """How many of each domain's hashes are in each of the places, including its own."""
    overlaps = {name: Overlap() for name in sought}
    all_sought = np.unique(np.concatenate([np.empty(0, np.uint64), *sought.values()]))
    found_anywhere = np.empty(0, np.uint64)
    for place, hashes in places.items():
        found = all_sought[_is_in(all_sought, hashes)]
        if not len(found):
            continue
        found_anywhere = np.union1d(found_anywhere, found)
        for name, wanted in sought.items():
            if num := int(_is_in(wanted, found).sum()):
                overlaps[name].by_domain[place] = num
    for name, wanted in sought.items():
        overlaps[name].num_any = int(_is_in(wanted, found_anywhere).sum())
    return overlaps


def find_shared(domains: Mapping[str, Hashes]) -> dict[str, Overlap]:
    """How many of each domain's hashes each other domain also has. Memory does not grow with their number."""
    overlaps = {name: Overlap() for name in domains}
    for part in _ranges(domains):
        everything = np.sort(np.concatenate([np.empty(0, np.uint64), *part.values()]))
        shared = np.unique(everything[1:][everything[1:] == everything[:-1]])
        within = {name: shared[_is_in(shared, hashes)] for name, hashes in part.items()}
        for name, found in find_within(within, within).items():
            overlaps[name].num_any += found.num_any
            for other, num in found.by_domain.items():
                if other != name:
                    overlaps[name].by_domain[other] = overlaps[name].by_domain.get(other, 0) + num
    return overlaps


def _ranges(domains: Mapping[str, Hashes]) -> Iterator[dict[str, Hashes]]:
    """The hashes in one range of values after the other."""
    num_parts = sum(map(len, domains.values())) // _HASHES_PER_RANGE + 1
    edges = np.array([2**64 * part // num_parts for part in range(num_parts)], dtype=np.uint64)
    bounds = {name: np.append(np.searchsorted(hashes, edges), len(hashes)) for name, hashes in domains.items()}
    for part in range(num_parts):
        yield {name: hashes[bounds[name][part] : bounds[name][part + 1]] for name, hashes in domains.items()}


def _is_in(sought: Hashes, hashes: Hashes) -> NDArray[np.bool_]:
    """(N,) which of the N sought are among the hashes."""
    if not len(hashes):
        return np.zeros(len(sought), dtype=np.bool_)
    at = np.minimum(np.searchsorted(hashes, sought), len(hashes) - 1)
    found: NDArray[np.bool_] = hashes[at] == sought
    return found
