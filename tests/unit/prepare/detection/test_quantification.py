"""Quantification: each estimate on answers whose shares are known, and what corrects what."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from orchestrator.prepare.detection.judges.base import Calibration, Calibrator, Floats
from orchestrator.prepare.detection.quantification import (
    EstimatedShares,
    average,
    correct,
    estimate_all,
    hard_answers,
    maximise_likelihood,
    smooth,
    total_variation,
)

NUM_DOMAINS = 4
TRUTH = np.array([0.55, 0.25, 0.15, 0.05])
# A judge that calls too much domain 0: how often domain (row) is called domain (column).
CONFUSION = np.array([[0.9, 0.05, 0.03, 0.02], [0.3, 0.6, 0.05, 0.05], [0.25, 0.05, 0.65, 0.05], [0.2, 0.1, 0.1, 0.6]])


def estimated(answers_ND: Floats, *settings: Any) -> dict[str, EstimatedShares]:
    return estimate_all([f"d{index}" for index in range(answers_ND.shape[1])], answers_ND, *settings)


def values_of(by_domain: Mapping[str, Any]) -> np.ndarray:
    return np.array(list(by_domain.values()))


def soft_answers(labels: np.ndarray, rng: np.random.Generator) -> Floats:
    """Posteriors that are over-confident and lean towards domain 0."""
    scores_ND = rng.normal(0.0, 1.0, (len(labels), NUM_DOMAINS))
    scores_ND[np.arange(len(labels)), labels] += 2.0
    scores_ND = 2.5 * scores_ND + np.array([2.0, 0.0, 0.0, -1.0])
    likelihood_ND = np.exp(scores_ND - scores_ND.max(axis=1, keepdims=True))
    return likelihood_ND / likelihood_ND.sum(axis=1, keepdims=True)


def one_hot_answers(labels: np.ndarray, rng: np.random.Generator) -> Floats:
    called = [rng.choice(NUM_DOMAINS, p=CONFUSION[label]) for label in labels]
    return np.eye(NUM_DOMAINS)[called]


def draw(kind: str, seed: int) -> tuple[Floats, Calibration]:
    make = {"soft": soft_answers, "one-hot": one_hot_answers}[kind]
    rng = np.random.default_rng(seed)
    labels_N = rng.permutation(np.repeat(np.arange(NUM_DOMAINS), (TRUTH * 3000).astype(int)))
    labels_C = np.repeat(np.arange(NUM_DOMAINS), 300)
    return make(labels_N, rng), Calibration(make(labels_C, rng), labels_C)


def test_average_and_counts_are_what_the_formulas_say() -> None:
    answers_ND = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])
    np.testing.assert_allclose(average(answers_ND), [0.55, 0.45])
    np.testing.assert_allclose(average(hard_answers(answers_ND)), [0.75, 0.25])  # the first of equals


@pytest.mark.parametrize("kind", ["soft", "one-hot"])
def test_the_correction_undoes_the_habits_of_a_judge(kind: str) -> None:
    plain, corrected = [], []
    for seed in range(6):
        answers_ND, calibration = draw(kind, seed)
        plain.append(total_variation(average(answers_ND), TRUTH))
        corrected.append(total_variation(correct(answers_ND, calibration), TRUTH))
    assert np.mean(corrected) < 0.4 * np.mean(plain)
    assert np.mean(corrected) < 0.03


def test_a_perfect_judge_needs_no_correction() -> None:
    labels_N = np.repeat(np.arange(NUM_DOMAINS), [500, 300, 199, 1])
    calibration = Calibration(np.eye(NUM_DOMAINS)[labels_N], labels_N)
    corrected_D = correct(np.eye(NUM_DOMAINS)[labels_N], calibration)
    np.testing.assert_allclose(corrected_D, [0.5, 0.3, 0.199, 0.001], atol=0.006)


def test_calibration_texts_may_differ_in_number() -> None:
    answers_ND, calibration = draw("soft", 0)
    kept = np.flatnonzero((calibration.labels_C != 1) | (np.arange(len(calibration.labels_C)) % 5 == 0))
    fewer = Calibration(calibration.answers_CD[kept], calibration.labels_C[kept])
    assert total_variation(correct(answers_ND, fewer), TRUTH) < 0.06


def test_the_fixed_point_satisfies_its_equation() -> None:
    answers_ND, calibration = draw("soft", 1)
    posteriors_ND = Calibrator(calibration)(answers_ND)
    shares_D = maximise_likelihood(posteriors_ND)
    again_D = (posteriors_ND * shares_D / (posteriors_ND @ shares_D)[:, None]).mean(axis=0)
    np.testing.assert_allclose(again_D, shares_D, atol=1e-5)
    np.testing.assert_allclose(shares_D.sum(), 1.0)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    covered = []
    for seed in range(4):
        answers_ND, calibration = draw("soft", seed)
        estimate = estimated(answers_ND[:600], calibration, 25, 0.95, seed)["corrected"]
        shares_D, (lower_D, upper_D) = values_of(estimate.shares), values_of(estimate.intervals).T
        covered += ((lower_D <= TRUTH) & (upper_D >= TRUTH)).tolist()
        assert (lower_D <= shares_D).all() and (shares_D <= upper_D).all()
    assert np.mean(covered) > 0.75


def test_a_smaller_calibration_set_widens_the_interval() -> None:
    answers_ND, calibration = draw("soft", 3)
    few = np.arange(0, len(calibration.labels_C), 12)
    small = Calibration(calibration.answers_CD[few], calibration.labels_C[few])
    wide = values_of(estimated(answers_ND, small, 40, 0.95, 0)["corrected"].standard_errors)
    narrow = values_of(estimated(answers_ND, calibration, 25, 0.95, 0)["corrected"].standard_errors)
    assert (wide > 1.5 * narrow).sum() >= NUM_DOMAINS - 1


def test_the_same_seed_gives_the_same_bits() -> None:
    answers_ND, calibration = draw("soft", 0)
    first, second = (estimated(answers_ND[:300], calibration, 10, 0.9, 7) for _ in range(2))
    for name in ("average", "counts", "corrected"):
        assert first[name] == second[name]


def test_without_calibration_there_is_no_correction() -> None:
    assert set(estimated(draw("soft", 0)[0][:50], None, 10, 0.9, 0)) == {"average", "counts"}


def test_one_domain_has_everything() -> None:
    answers_ND = np.ones((20, 1))
    calibration = Calibration(answers_ND, np.zeros(20, dtype=np.int64))
    estimates = estimated(answers_ND, calibration, 10, 0.95, 0)
    assert {name: list(estimate.shares.values()) for name, estimate in estimates.items()} == {
        "average": [1.0],
        "counts": [1.0],
        "corrected": [1.0],
    }


def test_smoothing_leaves_no_share_at_zero() -> None:
    np.testing.assert_allclose(smooth(np.array([0.75, 0.25, 0.0]), 97, 1.0), [73.75 / 100, 25.25 / 100, 0.01])
    np.testing.assert_allclose(smooth(np.array([1.0, 0.0]), 10, 0.0), [1.0, 0.0])
