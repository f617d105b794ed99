"""Shares of the domains from judged texts. Pure: arrays in, arrays out; every random draw is keyed by a seed.

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

from dataclasses import dataclass

import numpy as np

from orchestrator.prepare.detection.judges.calibration import Calibration, Calibrator, Floats, Ints

_EM_TOLERANCE = 1e-7
_EM_ITERATIONS = 2000


@dataclass(frozen=True)
class SharesEstimate:
    """Shares of shape (D,), their standard errors and the ends of their intervals."""

    shares_D: Floats
    standard_errors_D: Floats
    lower_D: Floats
    upper_D: Floats


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
    answers_ND: Floats, calibration: Calibration | None, num_bootstrap: int, confidence: float, seed: int
) -> dict[str, SharesEstimate]:
    """Each estimate with intervals from resampled texts, and for `corrected` also calibration texts, by domain.

    The intervals of `average` and `counts` do not include the judge's errors.
    """
    rng = np.random.default_rng(seed)
    num_texts = len(answers_ND)
    hard_ND = hard_answers(answers_ND)
    drawn_BN = rng.multinomial(num_texts, np.full(num_texts, 1.0 / num_texts), size=num_bootstrap).astype(np.float64)

    def with_intervals(shares_D: Floats, resampled: list[Floats]) -> SharesEstimate:
        resampled_BD = np.array(resampled)
        tails = [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0]
        lower_D, upper_D = np.quantile(resampled_BD, tails, axis=0)
        return SharesEstimate(shares_D, resampled_BD.std(axis=0, ddof=1), lower_D, upper_D)

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
