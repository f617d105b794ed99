"""Mean hidden states of texts at one layer of a model, and how they are arranged by domain.

Legend: N texts, H hidden size, D domains.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.config.model import ModelConfig
from workers.settings import narrow_seed

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BATCH_TEXTS = 16
_FOLDS = 5
_PERPLEXITY = 30.0  # scikit-learn's default; fewer texts need a lower one


def layer_index(layer: str, num_layers: int) -> int:
    """The layer named by "0.5" (a fraction of the depth) or "12" (a number); ValueError if the model has none such."""
    try:
        index = round(float(layer) * num_layers) if "." in layer and 0.0 <= float(layer) <= 1.0 else int(layer)
    except ValueError:
        index = -1
    if not 0 <= index <= num_layers:
        raise ValueError(
            f"layer {layer!r}: give a fraction of the depth such as 0.5, or a number from 0 (the embeddings) to "
            f"{num_layers}"
        )
    return index


def mean_hidden_states(config: ModelConfig, texts: Sequence[str], layer: str, max_length: int) -> Floats:
    """Mean hidden state after the layer over the first `max_length` tokens of each text; shape (N, H)."""
    import torch

    from workers.model.loading import load_model
    from workers.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(config)
    model: Any = load_model(config).eval()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    index = layer_index(layer, model.config.get_text_config().num_hidden_layers)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    encoded: Any = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    rows = [[*bos, *ids][:max_length] for ids in encoded["input_ids"]]
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))  # little padding
    means: dict[int, Floats] = {}
    for start in range(0, len(order), _BATCH_TEXTS):
        batch = order[start : start + _BATCH_TEXTS]
        length = max(len(rows[place]) for place in batch)
        input_ids_BL = torch.full((len(batch), length), tokenizer.pad_token_id or 0)
        mask_BL = torch.zeros((len(batch), length), dtype=torch.long)
        for number, place in enumerate(batch):
            input_ids_BL[number, : len(rows[place])] = torch.tensor(rows[place])
            mask_BL[number, : len(rows[place])] = 1
        with torch.inference_mode():
            output = model(
                input_ids_BL.to(device), attention_mask=mask_BL.to(device), output_hidden_states=True, use_cache=False
            )
        states_BLH = output.hidden_states[index].float().cpu() * mask_BL[..., None]
        pooled_BH = states_BLH.sum(dim=1) / mask_BL.sum(dim=1, keepdim=True)
        means |= dict(zip(batch, pooled_BH.double().numpy(), strict=True))
    return np.array([means[place] for place in range(len(rows))])


@dataclass(frozen=True)
class Geometry:
    silhouette: float
    linear_probe_accuracy: float
    centroid_distances_DD: Floats
    points_N2: Floats


def describe_geometry(states_NH: Floats, labels_N: Ints, seed: int) -> Geometry:
    """Numbers and t-SNE points of states labelled with their domain, 0 .. D-1.

    ValueError if there are fewer than two domains, or fewer than three texts of one.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.manifold import TSNE
    from sklearn.metrics import silhouette_score
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    counts_D, random_state = np.bincount(labels_N), narrow_seed(seed)
    if len(counts_D) < 2 or counts_D.min() < 3:
        raise ValueError(
            f"a probe needs two domains with three texts each, but the domains have {counts_D.tolist()} texts"
        )
    # Some coordinates of a residual stream are a hundred times larger than others and would dominate.
    scaled_NH = StandardScaler().fit_transform(states_NH)
    folds = StratifiedKFold(min(_FOLDS, int(counts_D.min())), shuffle=True, random_state=random_state)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    scores = cross_val_score(model, states_NH, labels_N, cv=folds, scoring="balanced_accuracy")
    # Starting from principal components keeps the orientation similar between models; a random start would not.
    perplexity = min(_PERPLEXITY, (len(scaled_NH) - 1) / 3.0)
    picture = TSNE(init="pca", perplexity=perplexity, random_state=random_state)
    return Geometry(
        silhouette=float(silhouette_score(scaled_NH, labels_N)),
        linear_probe_accuracy=float(scores.mean()),
        centroid_distances_DD=centroid_distances(scaled_NH, labels_N),
        points_N2=picture.fit_transform(scaled_NH),
    )


def centroid_distances(states_NH: Floats, labels_N: Ints) -> Floats:
    """Distances between the domains' means, divided by the root mean square distance to the own mean; (D, D)."""
    centroids_DH = np.array([states_NH[labels_N == label].mean(axis=0) for label in range(labels_N.max() + 1)])
    spread = np.sqrt(((states_NH - centroids_DH[labels_N]) ** 2).sum(axis=1).mean())
    distances_DD: Floats = np.linalg.norm(centroids_DH[:, None] - centroids_DH[None], axis=-1)
    return distances_DD / spread if spread > 0 else distances_DD
