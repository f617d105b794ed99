"""Copies what a checkpoint holds to host memory, in the background, while the next step computes its gradients.

Masters and moments change only when a step updates them, so that is all that has to wait for the copy.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

import torch

from workers.engine.zero_state import PARTS, Piece

Copies = dict[tuple[str, str], torch.Tensor]
"""(part, name of the parameter) -> its elements."""
_Outcome = TypeVar("_Outcome")


class HostCopy:
    """Of the pieces of one rank; its memory is kept from one checkpoint to the next."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Kept: memory that is new or not pinned is copied to several times slower.
        self._memory: torch.Tensor | None = None
        self._is_over = threading.Event()
        self._is_over.set()

    def start(
        self,
        held: Sequence[Piece],
        owned: Sequence[Piece],
        parts: Sequence[str],
        then: Callable[[Copies, dict[str, int]], _Outcome],
    ) -> "Future[_Outcome]":
        """Copy the pieces `owned` in a thread, which does not keep the process from ending, and call `then` in it.

        `then` gets the copies, which stay as they are until the next call, and how many numbers are NaN or infinite by
        tensor of `held`; if there are any, nothing was copied. The future has what it returns, or any error.
        """
        stream = None
        if self._device.type == "cuda":
            stream = torch.cuda.Stream(self._device)
            stream.wait_stream(torch.cuda.current_stream(self._device))  # the update before may still be computed
        self._is_over.clear()
        outcome: Future[_Outcome] = Future()

        def run() -> None:
            try:
                try:
                    with torch.cuda.stream(stream), torch.no_grad():
                        bad = self._count_not_finite(held, parts)
                        copies = {} if bad else self._copy(owned, parts)
                        if stream:
                            stream.synchronize()
                finally:
                    self._is_over.set()
                outcome.set_result(then(copies, bad))
            except BaseException as error:  # for whoever asks for the outcome
                outcome.set_exception(error)

        threading.Thread(target=run, name="checkpoint", daemon=True).start()
        return outcome

    def wait(self) -> None:
        """Until the pieces may change again."""
        self._is_over.wait()

    def _copy(self, owned: Sequence[Piece], parts: Sequence[str]) -> Copies:
        num_elements = len(PARTS) * sum(piece.length for piece in owned)
        if self._memory is None or self._memory.numel() != num_elements:
            self._memory = torch.empty(num_elements, dtype=torch.float32, pin_memory=self._device.type == "cuda")
        copies: Copies = {}
        offset = 0
        for piece in owned:
            for part, tensor in zip(parts, piece.parts, strict=False):
                copy = copies[part, piece.name] = self._memory[offset : offset + piece.length]
                copy.copy_(tensor.reshape(-1), non_blocking=True)
                offset += piece.length
        return copies

    def _count_not_finite(self, held: Sequence[Piece], parts: Sequence[str]) -> dict[str, int]:
        """Numbers that are NaN or infinite, by tensor that has any."""
        tensors = {
            f"{part} of {piece.name}": tensor
            for piece in held
            for part, tensor in zip(parts, piece.parts, strict=False)
        }
        if not tensors:
            return {}
        # Extremes are NaN or infinite if any element is; counting costs many times more.
        extremes = torch.stack([torch.stack(tensor.aminmax()).to(self._device) for tensor in tensors.values()])
        is_bad = ~extremes.isfinite().all(dim=1)
        return {
            name: int(tensor.numel() - tensor.isfinite().sum())
            for (name, tensor), bad in zip(tensors.items(), is_bad.tolist(), strict=True)
            if bad
        }
