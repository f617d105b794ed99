"""Tensors in the files of several ranks: any range of elements is read back from whichever files have it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from workers.engine.stored_tensors import StoredTensors, entries, file_of, key_of

SHAPES = {"matrix": torch.Size([5, 7]), "scalar": torch.Size([]), "gain": torch.Size([4])}
CUTS = {"matrix": [(0, 0, 3), (2, 3, 20), (1, 23, 12)], "scalar": [(1, 0, 1)], "gain": [(0, 0, 4)]}
"""Of each tensor, in no order: rank, start and length of its pieces."""


def tensors() -> dict[str, torch.Tensor]:
    return {name: torch.randn(shape, generator=torch.Generator().manual_seed(1)) for name, shape in SHAPES.items()}


def stored(folder: Path) -> StoredTensors:
    pieces: list[list[tuple[str, int, int]]] = [[], [], []]
    for rank, of_rank in enumerate(pieces):
        for name, cuts in CUTS.items():
            of_rank += [(name, start, length) for owner, start, length in cuts if owner == rank]
        content = {
            key_of("master", name): tensors()[name].flatten()[start : start + length] for name, start, length in of_rank
        }
        save_file(content, folder / file_of("master", rank))
    return StoredTensors(folder, entries(SHAPES, pieces))


def test_every_range_is_read_from_the_ranks_that_have_it(tmp_path: Path) -> None:
    found = stored(tmp_path)
    for name, tensor in tensors().items():
        assert torch.equal(found.whole("master", name), tensor)
        for start in range(tensor.numel()):
            for length in range(1, tensor.numel() - start + 1):
                expected = tensor.flatten()[start : start + length]
                assert torch.equal(found.read("master", name, start, length), expected), (name, start, length)


def test_every_range_of_a_whole_tensor_of_format_1(tmp_path: Path) -> None:
    whole = tensors() | {"cube": torch.randn(3, 2, 5)}
    save_file({f"exp_avg/{name}": tensor for name, tensor in whole.items()}, tmp_path / "trainable-00000.safetensors")
    described = {n: {"file": "trainable-00000.safetensors", "shape": list(t.shape)} for n, t in whole.items()}
    found = StoredTensors(tmp_path, described)
    for name, tensor in whole.items():
        assert torch.equal(found.whole("exp_avg", name), tensor)
        for start in range(tensor.numel()):
            for length in range(1, tensor.numel() - start + 1):
                expected = tensor.flatten()[start : start + length]
                assert torch.equal(found.read("exp_avg", name, start, length), expected), (name, start, length)


def test_pieces_that_do_not_cover_a_tensor_are_refused_with_the_numbers(tmp_path: Path) -> None:
    stored(tmp_path)
    lacking = StoredTensors(tmp_path, {"matrix": {"shape": [5, 7], "pieces": [[0, 0, 3], [1, 23, 12]]}})
    with pytest.raises(ValueError, match=r"have 15 of 35 elements of master of matrix"):
        lacking.whole("master", "matrix")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    found = stored(tmp_path)
    (tmp_path / file_of("master", 1)).write_bytes(b"not what it says it is")
    with pytest.raises(ValueError, match=r"masters-00001.safetensors is damaged: "):
        found.whole("master", "scalar")
