"""What a forward pass keeps for the backward pass."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def keeping(parameters: Iterable[torch.nn.Parameter]) -> Iterator[dict[int, torch.UntypedStorage]]:
    """Meanwhile collect, by address, the memory that is kept, without that of the parameters."""
    weights = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no other takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept
