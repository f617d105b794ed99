"""Scores of a model's units, as sums over tokens that can be added over domains, and their file. NumPy only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from workers.durable import write_durably

KINDS = ("head", "up", "down")
"""Units: query heads, intermediate neurons, and the hidden units to which the feed-forward block writes."""

UnitScores = Mapping[str, NDArray[np.float64]]
"""Kind of unit -> scores, shape (layers, units)."""


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
