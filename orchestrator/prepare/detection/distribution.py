"""distribution.json: the result of a detection, with everything that is needed to assess it."""

from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from orchestrator.prepare.detection.quantification import SharesEstimate
from workers.durable import write_durably

Shares = dict[str, float]


class EstimatedShares(BaseModel):
    """One estimate, by domain."""

    shares: Shares
    standard_errors: Shares
    intervals: dict[str, tuple[float, float]]

    @classmethod
    def of(cls, estimate: SharesEstimate, domains: list[str]) -> Self:
        """The arrays, each of shape (D,), by name."""
        ends = zip(estimate.lower_D.tolist(), estimate.upper_D.tolist(), strict=True)
        return cls(
            shares=dict(zip(domains, estimate.shares_D.tolist(), strict=True)),
            standard_errors=dict(zip(domains, estimate.standard_errors_D.tolist(), strict=True)),
            intervals=dict(zip(domains, ends, strict=True)),
        )


class Round(BaseModel):
    """The estimate after a round, over all texts so far; `change` is the largest change of a share in that round."""

    num_texts: int
    shares: Shares
    change: float | None


class ExampleText(BaseModel):
    """A generated text, for inspection, and the probability that the judge gave its domain."""

    text: str
    probability: float


class DetectedDistribution(BaseModel):
    """The knowledge distribution of a model."""

    model_config = ConfigDict(allow_inf_nan=False)

    shares: Shares
    """Shares of the trained domains: the chosen estimate, smoothed, summing to 1."""
    standard_errors: Shares
    intervals: dict[str, tuple[float, float]]
    confidence: float
    estimate: str
    """Name of the chosen estimate."""
    estimates: dict[str, EstimatedShares]
    """All estimates, of all domains, not smoothed."""
    rounds: list[Round]
    is_converged: bool
    """False if max_texts ended the detection."""
    num_texts: int
    num_unparsed: int
    """Texts for which the judge named no domain; they are in no estimate."""
    unparsed_notes: dict[str, int]
    """The answers about them with their counts, most frequent first."""
    num_calibration_texts: dict[str, int]
    responses: dict[str, Shares]
    """Mean answer of the judge on the calibration texts of each domain."""
    examples: dict[str, list[ExampleText]]
    model: str
    domains: list[str]
    seed: int
    judge: dict[str, Any]
    """Settings of the judge, and its cost in tokens and dollars."""
    generation: dict[str, Any]

    @model_validator(mode="after")
    def _is_a_distribution(self) -> Self:
        if abs(sum(self.shares.values()) - 1.0) > 1e-6 or min(self.shares.values()) < 0:
            raise ValueError("shares are not a distribution")
        return self

    def write(self, path: Path) -> None:
        write_durably(path, self.model_dump_json(indent=1).encode())

    @classmethod
    def read(cls, path: Path) -> Self:
        """The distribution in a file; ValueError if it is not a distribution.json."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: not a distribution that `raymix detect` wrote: {error}") from None


def trained_shares(smoothed_D: np.ndarray, domains: list[str], trained: list[str]) -> Shares:
    by_name = {name: float(share) for name, share in zip(domains, smoothed_D, strict=True) if name in trained}
    total = sum(by_name.values())
    if total <= 0:
        raise ValueError(
            f"no text of the trained domains {trained} was found; set detection.smoothing above 0 or give shares"
        )
    return {name: share / total for name, share in by_name.items()}
