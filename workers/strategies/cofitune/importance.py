"""Scores of a model's units, as sums over tokens that can be added over domains; from scores to importance in [0, 1):
normalise within a layer, merge; and the files of both. NumPy only.

Arrays have shape (layers, units), one for each kind of unit.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from workers.durable import write_durably
from workers.storage.mirror import fetch

KINDS = ("head", "up", "down")
"""Units: query heads, intermediate neurons, and the hidden units to which the feed-forward block writes."""

UnitScores = Mapping[str, NDArray[np.float64]]
"""Kind of unit -> scores, shape (layers, units)."""
_BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))

Importance = Mapping[str, NDArray[np.float32]]
"""Kind of unit -> importance in [0, 1], shape (layers, units)."""


@dataclass(frozen=True)
class Scores:
    """Sums over batches of the gates' gradients and of their absolute values."""

    signed_sum: UnitScores
    absolute_sum: UnitScores
    num_tokens: int

    @property
    def signed(self) -> UnitScores:
        """Mean over tokens."""
        return {kind: total / self.num_tokens for kind, total in self.signed_sum.items()}

    @property
    def absolute(self) -> UnitScores:
        """Mean over tokens of each batch's absolute gradient."""
        return {kind: total / self.num_tokens for kind, total in self.absolute_sum.items()}

    @classmethod
    def pooled(cls, several: Sequence["Scores"]) -> Self:
        return cls(
            {kind: np.sum([scores.signed_sum[kind] for scores in several], axis=0) for kind in KINDS},
            {kind: np.sum([scores.absolute_sum[kind] for scores in several], axis=0) for kind in KINDS},
            sum(scores.num_tokens for scores in several),
        )


def write_scores(path: Path, scores: Scores) -> None:
    from safetensors.numpy import save

    arrays = {f"signed/{kind}": np.ascontiguousarray(scores.signed_sum[kind]) for kind in KINDS}
    arrays |= {f"absolute/{kind}": np.ascontiguousarray(scores.absolute_sum[kind]) for kind in KINDS}
    write_durably(path, save({**arrays, "num_tokens": np.array([scores.num_tokens])}))


def read_scores(path: Path) -> Scores:
    from safetensors.numpy import load_file

    arrays = load_file(path)
    signed, absolute = ({kind: arrays[f"{part}/{kind}"] for kind in KINDS} for part in ("signed", "absolute"))
    return Scores(signed, absolute, int(arrays["num_tokens"][0]))


def normalise_scores(scores: UnitScores, how: Literal["zscore", "rank"]) -> Importance:
    """Importance of every unit from its score: signed for `zscore`, absolute for `rank`."""
    function = by_zscore if how == "zscore" else by_rank
    return {kind: function(scores[kind]) for kind in KINDS}


def by_zscore(signed: NDArray[np.float64]) -> NDArray[np.float32]:
    """|tanh((s - mean) / std)| within each layer, std with n - 1 (arXiv 2404.10306, the authors' code).

    A unit at its layer's mean is free; one far from it on either side is protected. Absolute scores must not be passed:
    the smallest are far below the mean and would be protected too. If all scores are equal, the importance is 0.
    """
    centred = signed - signed.mean(axis=1, keepdims=True)
    std = np.sqrt((centred**2).sum(axis=1, keepdims=True) / max(signed.shape[1] - 1, 1))
    z = np.divide(centred, std, out=np.zeros_like(centred), where=std > 0)
    # tanh rounds to 1 from 9 standard deviations on, but the formula stays below 1.
    return np.minimum(np.abs(np.tanh(z)).astype(np.float32), _BELOW_ONE)


def by_rank(absolute: NDArray[np.float64]) -> NDArray[np.float32]:
    """Units of the layer with a smaller score / units of the layer: 0 for the least important.

    Independent of distribution and sign; half of the units are above 0.5 in every layer.
    """
    smaller = [np.searchsorted(np.sort(layer), layer, side="left") for layer in absolute]
    return (np.stack(smaller) / absolute.shape[1]).astype(np.float32)


def merge_importance(several: Sequence[Importance]) -> Importance:
    """Elementwise maximum: important to one is important; ValueError if they belong to models of different shapes."""
    first = several[0]
    for other in several[1:]:
        if differing := [kind for kind in KINDS if other[kind].shape != first[kind].shape]:
            kind = differing[0]
            raise ValueError(
                f"importance of different models cannot be merged: {kind!r} has (layers, units) "
                f"{first[kind].shape} in one and {other[kind].shape} in another"
            )
    return {kind: np.maximum.reduce([importance[kind] for importance in several]) for kind in KINDS}


def write_importance(path: Path, importance: Importance, about: Mapping[str, object]) -> None:
    """Write importance.safetensors, and a .json with its origin and distribution."""
    from safetensors.numpy import save

    arrays = {kind: np.ascontiguousarray(importance[kind], dtype=np.float32) for kind in KINDS}
    summary = {
        kind: {
            "shape": list(array.shape),
            "mean": float(array.mean()),
            "above_0.9": float((array > 0.9).mean()),
            "below_0.1": float((array < 0.1).mean()),
        }
        for kind, array in arrays.items()
    }
    write_durably(path, save(arrays))
    write_durably(path.with_suffix(".json"), json.dumps({**about, "importance": summary}, indent=1).encode())


def read_importance(paths: Sequence[Path]) -> Importance:
    """The importance in a file, or the elementwise maximum of several; ValueError if a file is missing or was not
    written by `write_importance`, or they belong to different models."""
    return merge_importance([_read(path) for path in paths])


def _read(path: Path) -> Importance:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    fetch(path)
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"training.strategy.importance: {path} cannot be read: {error}") from error
    if absent := [kind for kind in KINDS if kind not in arrays or arrays[kind].ndim != 2]:
        raise ValueError(
            f"training.strategy.importance: {path} is not an importance file: it lacks {', '.join(absent)} of shape "
            "(layers, units); name an importance.safetensors written by a cofitune run"
        )
    for kind in KINDS:
        if not ((arrays[kind] >= 0) & (arrays[kind] <= 1)).all():
            raise ValueError(f"training.strategy.importance: {path}: {kind!r} has values outside [0, 1]")
    return {kind: arrays[kind].astype(np.float32) for kind in KINDS}
