"""Numbers of the probe on states whose geometry is known."""

import numpy as np
import pytest

from orchestrator.probe.geometry import centroid_distances, describe_geometry


def clusters(distance: float, num_texts: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels_N = np.repeat(np.arange(3), num_texts)
    centers_DH = distance * np.eye(3, 8)
    return centers_DH[labels_N] + rng.normal(size=(3 * num_texts, 8)), labels_N


def test_domains_apart_and_mixed_are_told_from_each_other() -> None:
    apart, mixed = (describe_geometry(*clusters(distance), seed=0) for distance in (12.0, 0.0))
    assert apart.silhouette > 0.25 and abs(mixed.silhouette) < 0.05
    assert apart.linear_probe_accuracy == 1.0 and mixed.linear_probe_accuracy < 0.6
    assert apart.points_N2.shape == (90, 2) and np.isfinite(apart.points_N2).all()


def test_one_large_coordinate_is_not_all_there_is_to_see() -> None:
    states_NH, labels_N = clusters(12.0)
    loud = np.hstack([states_NH, 1000.0 * np.random.default_rng(1).normal(size=(90, 1))])
    assert describe_geometry(loud, labels_N, 0).silhouette > 0.2


def test_the_probe_is_read_on_texts_it_was_not_fitted_on() -> None:
    rng = np.random.default_rng(0)
    states_NH = rng.normal(size=(60, 200))  # enough coordinates to fit any labels
    assert describe_geometry(states_NH, np.repeat(np.arange(2), 30), 0).linear_probe_accuracy < 0.75


def test_distances_are_in_units_of_the_spread_within() -> None:
    states_NH = np.array([[-1.0, 0.0], [1.0, 0.0], [9.0, 0.0], [11.0, 0.0]])
    labels_N = np.array([0, 0, 1, 1])
    np.testing.assert_allclose(centroid_distances(states_NH, labels_N), [[0.0, 10.0], [10.0, 0.0]])
    np.testing.assert_allclose(centroid_distances(7.0 * states_NH, labels_N), [[0.0, 10.0], [10.0, 0.0]])


def test_the_same_seed_gives_the_same_picture() -> None:
    first, second = (describe_geometry(*clusters(3.0), seed=4).points_N2 for _ in range(2))
    assert first.tolist() == second.tolist()


def test_too_little_to_measure_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"two domains with three texts each, .*\[3, 2\]"):
        describe_geometry(np.zeros((5, 4)), np.array([0, 0, 0, 1, 1]), 0)
