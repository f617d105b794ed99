"""Mean hidden states of texts at one layer of a model."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from orchestrator.probe.geometry import Floats
from workers.config.model import ModelConfig

_BATCH_TEXTS = 16


def layer_index(layer: str, num_layers: int) -> int:
    """The layer named by "0.5" (a fraction of the depth) or "12" (a number); 0 is the embeddings.

    Raises:
        ValueError: the model has no such layer.
    """
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
