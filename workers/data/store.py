"""The token store: packed rows (sequences) of one domain on disk, memory-mapped and read-only.

A store is a folder of plain .npy arrays and a manifest.json, written last, with the size of every array. `build_store`
fills it part by part, so memory stays flat. The stores of a domain are `<cache>/<key>/train` and `.../eval`;
`publish` names the finished pair in one rename, so a second builder finds it complete.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.config.data import DataConfig
from workers.data.placement import Examples, PlacedExamples, spread, write_distinct
from workers.data.runs import GrowingArray
from workers.data.tokenization import Side, TokenShard
from workers.durable import fsync

STORE_VERSION = 2
"""Increased whenever the same input would give a different store."""

_ARRAYS = ("input_ids", "position_ids", "loss_mask", "row_lengths", "row_loss_tokens", "row_examples")
_HASHES = ("prompts", "examples")
_FACTS = ("fingerprint", "num_rows", "num_examples", "num_tokens", "num_loss_tokens", "max_length")
_MANIFEST = "manifest.json"


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
    examples = Examples(shards, side, chosen)
    folder.mkdir()
    with PlacedExamples(folder, examples, data.max_length, data.packing) as placed:
        num_loss_tokens = _write_rows(folder, placed, data.max_length, pad_id)
    num_prompts, num_distinct = (
        write_distinct(folder / f"{name}.npy", examples, name, placed.num_examples) for name in _HASHES
    )
    manifest = {
        "store_version": STORE_VERSION,
        **about,
        "max_length": data.max_length,
        "num_rows": placed.num_rows,
        "num_examples": placed.num_examples,
        "num_tokens": placed.num_tokens,
        "num_loss_tokens": num_loss_tokens,
        "num_prompts": num_prompts,
        "num_distinct_examples": num_distinct,
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


def _write_rows(folder: Path, placed: PlacedExamples, max_length: int, pad_id: int) -> int:
    """Write all arrays; the number of loss tokens."""
    positions = np.uint16 if max_length <= 2**16 else np.int32
    of_tokens = {"input_ids": np.int32, "position_ids": positions, "loss_mask": np.bool_}
    num_loss_tokens = 0
    with ExitStack() as stack:
        files = {}
        for name in _ARRAYS:
            shape = (max_length,) if name in of_tokens else ()
            array = GrowingArray(folder / f"{name}.npy", of_tokens.get(name, np.int32), shape)
            files[name] = stack.enter_context(closing(array))
        for number, rows in enumerate(placed.parts):
            arrays = _lay_out(placed.read(number), rows, max_length, pad_id)
            num_loss_tokens += int(arrays["row_loss_tokens"].sum(dtype=np.int64))
            for name, file in files.items():
                file.append(arrays[name])
    return num_loss_tokens


def _lay_out(
    examples: Mapping[str, NDArray[Any]], rows: range, max_length: int, pad_id: int
) -> dict[str, NDArray[Any]]:
    """The arrays of these rows, from their examples in order."""
    lengths, row_E = examples["lengths"], examples["rows"] - rows.start
    first_R = np.searchsorted(row_E, np.arange(len(rows)))  # every row has an example
    start_E = np.cumsum(lengths, dtype=np.int64) - lengths
    used = spread(row_E * max_length + start_E - start_E[first_R][row_E], lengths)
    input_ids_RL = np.full((len(rows), max_length), pad_id, dtype=np.int32)
    position_ids_RL = np.zeros((len(rows), max_length), dtype=np.int32)
    loss_mask_RL = np.zeros((len(rows), max_length), dtype=np.bool_)
    input_ids_RL.reshape(-1)[used] = examples["input_ids"]
    position_ids_RL.reshape(-1)[used] = spread(np.zeros_like(start_E), lengths)
    loss_mask_RL.reshape(-1)[used] = examples["loss_mask"]
    return {
        "input_ids": input_ids_RL,
        "position_ids": position_ids_RL,
        "loss_mask": loss_mask_RL,
        "row_lengths": np.add.reduceat(lengths, first_R),
        "row_loss_tokens": loss_mask_RL.sum(axis=1),
        "row_examples": np.bincount(row_E, minlength=len(rows)),
    }
