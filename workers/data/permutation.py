"""Permutations that are a pure function of a key: the same on every machine and with every version of NumPy.

NumPy does not promise that a generator's `permutation` stays the same between releases, and a sample stream must
outlive a release. So the order is the sorting order of hashed indices (SplitMix64's finaliser, Steele et al. 2014).
"""

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def derive_key(*parts: int | str) -> np.uint64:
    """A 64-bit key from any numbers and words; the parts ("a", "bc") and ("ab", "c") give different keys."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return np.uint64(int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little"))


def hash_uint64(values: NDArray[np.uint64], key: np.uint64 | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 of `values`, keyed: a bijection of the 64-bit integers for each key."""
    mixed = (values + np.uint64(1)) * _GOLDEN + key  # array overflow wraps silently
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_1
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
    return mixed ^ (mixed >> np.uint64(31))


def permutation(key: np.uint64, size: int) -> NDArray[np.int64]:
    return np.argsort(hash_uint64(np.arange(size, dtype=np.uint64), key), kind="stable")


def permutations(keys: NDArray[np.uint64], size: int) -> NDArray[np.int64]:
    """One permutation of `range(size)` per key, shape (len(keys), size)."""
    return np.argsort(hash_uint64(np.arange(size, dtype=np.uint64)[None, :], keys[:, None]), axis=1, kind="stable")
