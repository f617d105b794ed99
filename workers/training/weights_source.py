"""One answer for all ranks: rank 0 asks the weights source and broadcasts its answers.

So all ranks use the same version in a step, however the controller's answers are delayed or reordered.
"""

import torch
import torch.distributed as dist

from workers.contracts import DomainFeedback, DomainWeights, WeightsSource
from workers.engine.collectives import on_rank_zero

_NO_VERSION = -1


class BroadcastWeightsSource:
    """A `WeightsSource` whose calls are collectives; only rank 0's inner source is asked."""

    def __init__(self, source: WeightsSource, device: torch.device) -> None:
        self._source = source
        self._device = device
        self._is_asking = dist.get_rank() == 0
        self._known: dict[int, DomainWeights] = {}

    def open_attempt(self) -> int:
        return self._share(self._source.open_attempt() if self._is_asking else 0)

    def history(self) -> list[DomainWeights]:
        versions = self._source.history() if self._is_asking else []
        for number in range(self._share(len(versions))):
            self._share_weights(versions[number] if self._is_asking else None)
        return list(self._known.values())

    def pull(self, step: int) -> DomainWeights | None:
        weights = self._source.pull(step) if self._is_asking else None
        version = self._share(weights.version if weights else _NO_VERSION)
        return None if version == _NO_VERSION else self._share_version(version, weights)

    def push(self, feedback: DomainFeedback) -> DomainWeights:
        return self._share_weights(self._source.push(feedback) if self._is_asking else None)

    def _share_weights(self, weights: DomainWeights | None) -> DomainWeights:
        return self._share_version(self._share(weights.version if weights else _NO_VERSION), weights)

    def _share_version(self, version: int, weights: DomainWeights | None) -> DomainWeights:
        """The version; it is broadcast whole only if it is new."""
        if version not in self._known:
            self._known[version] = on_rank_zero(lambda: weights)
        return self._known[version]

    def _share(self, number: int) -> int:
        tensor = torch.tensor([number], dtype=torch.int64, device=self._device)
        dist.broadcast(tensor, src=0)
        return int(tensor.item())
