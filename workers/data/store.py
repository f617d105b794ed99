"""The token store: packed rows (sequences) of one domain on disk, memory-mapped and read-only.

A store is a folder of plain .npy arrays and a manifest.json, written last, with the size of every array. `build_store`
fills it block by block, so memory stays flat. The stores of a domain are `<cache>/<key>/train` and `.../eval`;
`publish` names the finished pair in one rename, so a second builder finds it complete.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.config.data import DataConfig
from workers.data.packing import Packing, pack_examples
from workers.data.tokenization import Side, TokenShard
from workers.durable import fsync

STORE_VERSION = 2
"""Increased whenever the same input would give a different store."""

_ARRAYS = ("input_ids", "position_ids", "loss_mask", "row_lengths", "row_loss_tokens", "row_examples")
_HASHES = ("prompts", "examples")
_FACTS = ("fingerprint", "num_rows", "num_examples", "num_tokens", "num_loss_tokens", "max_length")
_MANIFEST = "manifest.json"
_BLOCK_TOKENS = 2**20


@dataclass(frozen=True)
class TokenStore:
    """Packed rows of one domain; R rows of L tokens."""

    folder: Path
    fingerprint: str
    num_rows: int
    num_examples: int
    num_tokens: int
    num_loss_tokens: int
    max_length: int
    input_ids: NDArray[np.int32]  # (R, L), padded with the pad id
    position_ids: NDArray[np.unsignedinteger[Any]] | NDArray[np.signedinteger[Any]]
    """(R, L), from 0 in every example; 0 for padding."""
    loss_mask: NDArray[np.bool_]  # (R, L), True where the token is a target that counts
    row_lengths: NDArray[np.int32]  # (R,) tokens used
    row_loss_tokens: NDArray[np.int32]  # (R,) targets
    row_examples: NDArray[np.int32]  # (R,) examples
    manifest: dict[str, Any]  # how it was made

    @classmethod
    def open(cls, folder: Path) -> "TokenStore":
        """Map a finished store; ValueError if it is damaged."""
        try:
            manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            if manifest["store_version"] != STORE_VERSION:
                raise ValueError(f"its version is {manifest['store_version']}, not {STORE_VERSION}")
            for name in dict.fromkeys((*_ARRAYS, *manifest["array_bytes"])):
                size, expected = (folder / f"{name}.npy").stat().st_size, manifest["array_bytes"][name]
                if size != expected:
                    raise ValueError(f"{name}.npy has {size} bytes instead of {expected}")
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
            return cls(folder, manifest=manifest, **{name: manifest[name] for name in _FACTS}, **arrays)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"token store {folder} is damaged: {error}. Delete {folder.parent}; it will be made again"
            ) from error

    @property
    def prompts(self) -> NDArray[np.uint64]:
        """Distinct hashes of the prompts, ascending; memory-mapped."""
        return self._hashes("prompts")

    @property
    def distinct_examples(self) -> NDArray[np.uint64]:
        """Distinct hashes of the examples (ids and targets), ascending; memory-mapped."""
        return self._hashes("examples")

    def _hashes(self, name: str) -> NDArray[np.uint64]:
        hashes: NDArray[np.uint64] = np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return hashes

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled as the folder, not its content.
        return TokenStore.open, (self.folder,)


def build_store(
    folder: Path,
    side: Side,
    shards: Sequence[TokenShard],
    data: DataConfig,
    pad_id: int,
    about: Mapping[str, object],
    chosen: NDArray[np.int64] | None = None,
) -> None:
    """Pack one side of the shards into a store in `folder`; `about` (with its `fingerprint`) goes into the manifest.

    `chosen` are the indices of the examples to take, counted over all shards; default: all.
    """
    examples = _Examples([shard for shard in shards if shard.num_examples[side]], side, chosen)
    packing = pack_examples(examples.lengths, data.max_length, data.packing)
    folder.mkdir()
    num_loss_tokens = _write_rows(folder, examples, packing, data.max_length, pad_id)
    # Distinct and ascending, so that others can be searched in them.
    hashes = {name: np.unique(examples.hashes(name)) for name in _HASHES}
    for name, distinct in hashes.items():
        np.save(folder / f"{name}.npy", distinct)
    manifest = {
        "store_version": STORE_VERSION,
        **about,
        "max_length": data.max_length,
        "num_rows": packing.num_rows,
        "num_examples": len(examples.lengths),
        "num_tokens": int(examples.lengths.sum(dtype=np.int64)),
        "num_loss_tokens": num_loss_tokens,
        "num_prompts": len(hashes["prompts"]),
        "num_distinct_examples": len(hashes["examples"]),
        "array_bytes": {name: (folder / f"{name}.npy").stat().st_size for name in _ARRAYS + _HASHES},
    }
    for name in _ARRAYS + _HASHES:
        fsync(folder / f"{name}.npy")
    # Under another name until it is complete: a manifest means a complete store.
    unfinished = folder / f".{_MANIFEST}"
    unfinished.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    fsync(unfinished)
    unfinished.rename(folder / _MANIFEST)
    fsync(folder)


def publish(building: Path, final: Path) -> None:
    """Rename a folder of finished stores to `final`; if another builder was first, its stores stay and these go."""
    fsync(building)
    try:
        building.rename(final)
        fsync(final.parent)
    except OSError:
        if not final.is_dir():
            raise
        shutil.rmtree(building)


class _Examples:
    """The examples of one side, over all shards."""

    def __init__(self, shards: list[TokenShard], side: Side, chosen: NDArray[np.int64] | None) -> None:
        lengths = [np.asarray(shard.array(side, "lengths")) for shard in shards]
        taken = slice(None) if chosen is None else chosen
        self.lengths = np.concatenate(lengths)[taken]
        self._shard_of = np.repeat(np.arange(len(shards)), [len(part) for part in lengths])[taken]
        self._starts = np.concatenate([np.cumsum(part, dtype=np.int64) - part for part in lengths])[taken]
        self._side, self._shards, self._taken = side, shards, taken
        self._input_ids = [shard.array(side, "input_ids") for shard in shards]
        self._loss_masks = [shard.array(side, "loss_mask") for shard in shards]

    def hashes(self, name: str) -> NDArray[np.uint64]:
        return np.concatenate([np.asarray(shard.array(self._side, name)) for shard in self._shards])[self._taken]

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        shard, start = self._shard_of[index], self._starts[index]
        end = start + self.lengths[index]
        return self._input_ids[shard][start:end], self._loss_masks[shard][start:end]


def _write_rows(folder: Path, examples: _Examples, packing: Packing, max_length: int, pad_id: int) -> int:
    """Write all arrays; the number of loss tokens."""
    shape = (packing.num_rows, max_length)
    positions = np.uint16 if max_length <= 2**16 else np.int32
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
        for name, dtype in (("input_ids", np.int32), ("position_ids", positions), ("loss_mask", np.bool_))
    }
    row_lengths, row_loss_tokens = np.zeros((2, packing.num_rows), dtype=np.int32)
    rows_per_block = max(1, _BLOCK_TOKENS // max_length)
    for first in range(0, packing.num_rows, rows_per_block):
        rows = range(first, min(first + rows_per_block, packing.num_rows))
        input_ids_BL = np.full((len(rows), max_length), pad_id, dtype=np.int32)
        position_ids_BL = np.zeros((len(rows), max_length), dtype=positions)
        loss_mask_BL = np.zeros((len(rows), max_length), dtype=np.bool_)
        for at, row in enumerate(rows):
            end = 0
            for index in packing.examples[packing.offsets[row] : packing.offsets[row + 1]]:
                ids, mask = examples[index]
                start, end = end, end + len(ids)
                input_ids_BL[at, start:end] = ids
                position_ids_BL[at, start:end] = np.arange(len(ids))
                loss_mask_BL[at, start:end] = mask
            row_lengths[row] = end
        arrays["input_ids"][first : rows.stop] = input_ids_BL
        arrays["position_ids"][first : rows.stop] = position_ids_BL
        arrays["loss_mask"][first : rows.stop] = loss_mask_BL
        row_loss_tokens[rows.start : rows.stop] = loss_mask_BL.sum(axis=1)
    for array in arrays.values():
        array.flush()
    np.save(folder / "row_lengths.npy", row_lengths)
    np.save(folder / "row_loss_tokens.npy", row_loss_tokens)
    np.save(folder / "row_examples.npy", np.diff(packing.offsets).astype(np.int32))
    return int(row_loss_tokens.sum(dtype=np.int64))
