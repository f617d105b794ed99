"""Shares of the domains from judged texts, and distribution.json, the result of a detection.

The estimates are pure, arrays in, arrays out; every random draw is keyed by a seed.

Three estimates, side by side:

    average    P_d = (1/N) sum_n p_n(d)                     the paper's figure (VersaTune, arXiv 2411.11266)
    counts     P_d = (1/N) #{n : d = argmax p_n}            the paper's released code
    corrected  P_d = (1/N) sum_n q_n(d) P_d / sum_e q_n(e) P_e      to its fixed point

The first two inherit every bias of the judge: a domain that it prefers gets too large a share. The third corrects that.
q_n is the judge's answer calibrated on texts of known domain in equal parts, so q_n(d) is a posterior under equal
shares; the fixed point is the maximum likelihood estimate of the shares by expectation maximisation (Saerens, Latinne
and Decaestecker, Neural Computation 14, 2002). It depends on calibration by scale and bias (Alexandari, Kundaje and
Shrikumar, ICML 2020). On mixtures of a small model's continuations with known shares it was closer than a full logistic
regression or the inverse of the confusion matrix, and halved the error of the average and of the counts. Hard answers
need no other formula: calibration turns one-hot answers into the rows of a confusion matrix.

Assumes that texts of a domain are judged alike in the calibration set and among the free texts (label shift).

Legend: N texts, C calibration texts, D domains, B resamples.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from orchestrator.prepare.detection.judges.base import Calibration, Calibrator, Floats, Ints
from workers.bounded import read_model
from workers.durable import write_durably

_EM_TOLERANCE = 1e-7
_EM_ITERATIONS = 2000


Shares = dict[str, float]


class EstimatedShares(BaseModel):
    """One estimate, by domain."""

    shares: Shares
    standard_errors: Shares
    intervals: dict[str, tuple[float, float]]


def average(answers_ND: Floats, counts_N: Floats | None = None) -> Floats:
    """Mean of the answers, each counted `counts_N` times; shape (D,)."""
    return np.average(answers_ND, axis=0, weights=counts_N)


def hard_answers(answers_ND: Floats) -> Floats:
    """1 for the most likely domain of each text (the first if tied), 0 elsewhere; shape (N, D)."""
    return np.eye(answers_ND.shape[1])[answers_ND.argmax(axis=1)]


def maximise_likelihood(posteriors_ND: Floats, counts_N: Floats | None = None, near_D: Floats | None = None) -> Floats:
    """Shares under which texts with these posteriors (under equal shares) are most likely; shape (D,).

    `near_D`, all above 0, is a starting point that saves time.
    """
    num_texts, num_domains = posteriors_ND.shape
    counts_N = np.ones(num_texts) if counts_N is None else counts_N
    shares_D = np.full(num_domains, 1.0 / num_domains) if near_D is None else near_D
    for _ in range(_EM_ITERATIONS):
        evidence_N = posteriors_ND @ shares_D
        updated_D = shares_D * ((counts_N / evidence_N) @ posteriors_ND) / counts_N.sum()
        change = np.abs(updated_D - shares_D).max()
        shares_D = updated_D
        if change < _EM_TOLERANCE:
            break
    return shares_D / shares_D.sum()


def estimate_all(
    domains: Sequence[str],
    answers_ND: Floats,
    calibration: Calibration | None,
    num_bootstrap: int,
    confidence: float,
    seed: int,
) -> dict[str, EstimatedShares]:
    """Each estimate by its name, with intervals from resampled texts, and for `corrected` also calibration texts.

    The intervals of `average` and `counts` do not include the judge's errors.
    """
    rng = np.random.default_rng(seed)
    num_texts = len(answers_ND)
    hard_ND = hard_answers(answers_ND)
    drawn_BN = rng.multinomial(num_texts, np.full(num_texts, 1.0 / num_texts), size=num_bootstrap).astype(np.float64)

    def with_intervals(shares_D: Floats, resampled: list[Floats]) -> EstimatedShares:
        resampled_BD = np.array(resampled)
        ends_D2 = np.quantile(resampled_BD, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0], axis=0).T
        errors_D = resampled_BD.std(axis=0, ddof=1)
        return EstimatedShares(
            shares=dict(zip(domains, shares_D.tolist(), strict=True)),
            standard_errors=dict(zip(domains, errors_D.tolist(), strict=True)),
            intervals=dict(zip(domains, map(tuple, ends_D2.tolist()), strict=True)),
        )

    estimates = {
        name: with_intervals(average(values_ND), [average(values_ND, drawn_N) for drawn_N in drawn_BN])
        for name, values_ND in (("average", answers_ND), ("counts", hard_ND))
    }
    if calibration is not None:
        calibrator = Calibrator(calibration)
        shares_D = maximise_likelihood(calibrator(answers_ND))
        near_D = np.maximum(shares_D, 1.0 / num_texts)  # a share of 0 would stay 0
        resampled = []
        for drawn_N in drawn_BN:
            again = Calibrator(calibration, _redraw(calibration.labels_C, rng), near=calibrator)
            resampled.append(maximise_likelihood(again(answers_ND), drawn_N, near_D / near_D.sum()))
        estimates["corrected"] = with_intervals(shares_D, resampled)
    return estimates


def correct(answers_ND: Floats, calibration: Calibration) -> Floats:
    return maximise_likelihood(Calibrator(calibration)(answers_ND))


def smooth(shares_D: Floats, num_texts: int, pseudo_texts: float) -> Floats:
    """Shares with `pseudo_texts` texts added to every domain."""
    return (shares_D * num_texts + pseudo_texts) / (num_texts + pseudo_texts * len(shares_D))


def total_variation(first_D: Floats, second_D: Floats) -> float:
    """Half the sum of absolute differences."""
    return float(np.abs(first_D - second_D).sum() / 2.0)


def _redraw(labels_C: Ints, rng: np.random.Generator) -> Floats:
    """How often each calibration text is drawn, keeping the number of texts of each domain."""
    counts_C = np.zeros(len(labels_C))
    for label in np.unique(labels_C):
        members = np.flatnonzero(labels_C == label)
        counts_C[members] = rng.multinomial(len(members), np.full(len(members), 1.0 / len(members)))
    return counts_C


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
    """distribution.json: the knowledge distribution of a model, with everything that is needed to assess it."""

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
            return read_model(path, cls)
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
