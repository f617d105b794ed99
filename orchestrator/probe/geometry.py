"""How hidden states of texts are arranged by domain. Pure: arrays in, numbers out.

Legend: N texts, H hidden size, D domains.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.settings import narrow_seed

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FOLDS = 5
_PERPLEXITY = 30.0  # scikit-learn's default; fewer texts need a lower one


@dataclass(frozen=True)
class Geometry:
    silhouette: float
    linear_probe_accuracy: float
    centroid_distances_DD: Floats
    points_N2: Floats


def describe_geometry(states_NH: Floats, labels_N: Ints, seed: int) -> Geometry:
    """Numbers and t-SNE points of states labelled with their domain, 0 .. D-1.

    Raises:
        ValueError: fewer than two domains, or fewer than three texts of one.
    """
    from sklearn.metrics import silhouette_score
    from sklearn.preprocessing import StandardScaler

    counts_D = np.bincount(labels_N)
    if len(counts_D) < 2 or counts_D.min() < 3:
        raise ValueError(
            f"a probe needs two domains with three texts each, but the domains have {counts_D.tolist()} texts"
        )
    # Some coordinates of a residual stream are a hundred times larger than others and would dominate.
    scaled_NH = StandardScaler().fit_transform(states_NH)
    return Geometry(
        silhouette=float(silhouette_score(scaled_NH, labels_N)),
        linear_probe_accuracy=_probe(states_NH, labels_N, seed),
        centroid_distances_DD=centroid_distances(scaled_NH, labels_N),
        points_N2=_picture(scaled_NH, seed),
    )


def centroid_distances(states_NH: Floats, labels_N: Ints) -> Floats:
    """Distances between the domains' means, divided by the root mean square distance to the own mean; (D, D)."""
    centroids_DH = np.array([states_NH[labels_N == label].mean(axis=0) for label in range(labels_N.max() + 1)])
    spread = np.sqrt(((states_NH - centroids_DH[labels_N]) ** 2).sum(axis=1).mean())
    distances_DD: Floats = np.linalg.norm(centroids_DH[:, None] - centroids_DH[None], axis=-1)
    return distances_DD / spread if spread > 0 else distances_DD


def _probe(states_NH: Floats, labels_N: Ints, seed: int) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedKFold(min(_FOLDS, int(np.bincount(labels_N).min())), shuffle=True, random_state=narrow_seed(seed))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    return float(cross_val_score(model, states_NH, labels_N, cv=folds, scoring="balanced_accuracy").mean())


def _picture(scaled_NH: Floats, seed: int) -> Floats:
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(scaled_NH) - 1) / 3.0)
    # Starting from principal components keeps the orientation similar between models; a random start would not.
    points_N2: Floats = TSNE(init="pca", perplexity=perplexity, random_state=narrow_seed(seed)).fit_transform(scaled_NH)
    return points_N2
