"""Masters and moments on disk: each rank's pieces in files of its own, from which any rank reads what it needs.

    masters-00003.safetensors    of rank 3: `master/NAME`, the elements that it stepped of a flattened parameter
    moments-00003.safetensors    `exp_avg/NAME` and `exp_avg_sq/NAME`, the same elements

`entries` describe each parameter as JSON content: its shape, and [rank, start, length] of each piece. Of a file only
the requested elements are read, so that ranks of any number and ZeRO stage read a checkpoint without exchanging
anything.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from workers.storage.checkpoints import fetch_checkpoint_file

_FILES = {"master": "masters", "exp_avg": "moments", "exp_avg_sq": "moments"}


def file_of(part: str, rank: int) -> str:
    """The file of a rank that holds this part of its pieces."""
    return f"{_FILES[part]}-{rank:05d}.safetensors"


def key_of(part: str, name: str) -> str:
    return f"{part}/{name}"


def entries(
    shapes: Mapping[str, torch.Size], pieces_of_ranks: Sequence[Sequence[tuple[str, int, int]]]
) -> dict[str, dict[str, Any]]:
    """The description of all parameters, from (name, start, length) of each rank's pieces."""
    described: dict[str, dict[str, Any]] = {
        name: {"shape": list(shape), "pieces": []} for name, shape in shapes.items()
    }
    for rank, pieces in enumerate(pieces_of_ranks):
        for name, start, length in pieces:
            described[name]["pieces"].append([rank, start, length])
    return described


class StoredTensors:
    """The tensors of a folder, by their entries; also of format 1, where an entry names the file of a whole tensor."""

    def __init__(self, folder: Path, described: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder = folder
        self._entries = described
        self._open: dict[str, Any] = {}

    def read(self, part: str, name: str, start: int, length: int) -> torch.Tensor:
        """Elements [start, start + length) of a flattened tensor, in float32.

        Raises:
            ValueError: a file is damaged, or the pieces do not cover the elements.
        """
        found = torch.empty(length, dtype=torch.float32)
        num_found = 0
        for file, piece_start, piece_length in self._pieces(part, name):
            first, end = max(start, piece_start), min(start + length, piece_start + piece_length)
            if first < end:
                elements = self._slice(file, key_of(part, name), first - piece_start, end - piece_start)
                found[first - start : end - start] = elements
                num_found += end - first
        if num_found != length:
            raise ValueError(
                f"{self.folder} is damaged: its files have {num_found:,} of {length:,} elements of {part} of {name}"
            )
        return found

    def whole(self, part: str, name: str) -> torch.Tensor:
        """A tensor in its own shape, in float32; ValueError as `read`."""
        shape = torch.Size(self._entries[name]["shape"])
        return self.read(part, name, 0, shape.numel()).view(shape)

    def _pieces(self, part: str, name: str) -> list[tuple[str, int, int]]:
        entry = self._entries[name]
        if "file" in entry:
            return [(entry["file"], 0, torch.Size(entry["shape"]).numel())]
        return [(file_of(part, rank), start, length) for rank, start, length in entry["pieces"]]

    def _slice(self, file: str, key: str, first: int, end: int) -> torch.Tensor:
        try:
            if file not in self._open:
                fetch_checkpoint_file(self.folder / file)
                self._open[file] = safe_open(self.folder / file, framework="pt")
            stored = self._open[file].get_slice(key)
            shape = stored.get_shape()
            if not shape:
                return self._open[file].get_tensor(key).view(1)
            per_row = max(torch.Size(shape[1:]).numel(), 1)
            first_row = first // per_row
            rows = stored[first_row : -(-end // per_row)]
            return rows.reshape(-1)[first - first_row * per_row : end - first_row * per_row]
        except SafetensorError as error:
            raise ValueError(f"{self.folder / file} is damaged: {error}") from error
