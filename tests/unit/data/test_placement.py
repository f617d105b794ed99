"""Examples reach their rows through files: the same arrays as if all were in memory, however they are divided."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workers.config.data import DataConfig
from workers.data import placement
from workers.data.packing import pack_examples
from workers.data.report import Report
from workers.data.runs import GrowingArray, Runs
from workers.data.store import TokenStore, build_store
from workers.data.tokenization import TokenShard

MAX_LENGTH = 24
PAD = 7


def write_shard(folder: Path, rng: np.random.Generator, num_examples: int) -> TokenShard:
    folder.mkdir()
    lengths = rng.integers(1, MAX_LENGTH + 1, num_examples).astype(np.int32)
    arrays = {
        "lengths": lengths,
        "input_ids": rng.integers(10, 99, lengths.sum()).astype(np.int32),
        "loss_mask": rng.random(lengths.sum()) < 0.5,
        "prompts": rng.integers(0, 2**64, num_examples, dtype=np.uint64),
        "examples": rng.integers(0, 40, num_examples).astype(np.uint64) << np.uint64(58),
    }
    for name, array in arrays.items():
        array.tofile(folder / f"train.{name}")
    return TokenShard(folder=folder, num_examples={"train": num_examples, "eval": 0}, report=Report())


def lay_out_in_memory(shards: list[TokenShard], chosen: Any, packing: bool) -> dict[str, Any]:
    """The arrays of a store by their definition."""
    whole = {
        name: np.concatenate([shard.array("train", name) for shard in shards])
        for name in ("lengths", "input_ids", "loss_mask", "prompts", "examples")
    }
    starts = np.cumsum(whole["lengths"]) - whole["lengths"]
    taken = np.arange(len(starts)) if chosen is None else chosen
    rows = pack_examples(whole["lengths"][taken], MAX_LENGTH, packing)
    found: dict[str, Any] = {name: [] for name in ("input_ids", "position_ids", "loss_mask", "row_examples")}
    for row in range(rows.num_rows):
        places = [
            np.arange(starts[index], starts[index] + whole["lengths"][index])
            for index in taken[rows.examples[rows.offsets[row] : rows.offsets[row + 1]]]
        ]
        padding = (0, MAX_LENGTH - sum(map(len, places)))
        used = np.concatenate(places)
        found["input_ids"].append(np.pad(whole["input_ids"][used], padding, constant_values=PAD))
        found["loss_mask"].append(np.pad(whole["loss_mask"][used], padding))
        found["position_ids"].append(np.pad(np.concatenate([np.arange(len(part)) for part in places]), padding))
        found["row_examples"].append(len(places))
    found["prompts"], found["distinct_examples"] = (np.unique(whole[name][taken]) for name in ("prompts", "examples"))
    return found


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("is_part", [True, False])
def test_a_store_made_through_files_is_the_one_made_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: bool, is_part: bool
) -> None:
    rng = np.random.default_rng(int(packing))
    shards = [write_shard(tmp_path / f"{number}", rng, number * 40) for number in range(5)]
    chosen = np.flatnonzero(rng.random(400) < 0.3) if is_part else None
    limits = {"_BLOCK_TOKENS": 300, "_BLOCK_EXAMPLES": 17, "_PART_TOKENS": 5 * MAX_LENGTH, "_HASHES_PER_PART": 9}
    for name, limit in limits.items():
        monkeypatch.setattr(placement, name, limit)
    data = DataConfig(max_length=MAX_LENGTH, packing=packing)
    build_store(tmp_path / "train", "train", shards, data, PAD, {"fingerprint": "f"}, chosen)
    store = TokenStore.open(tmp_path / "train")
    expected = lay_out_in_memory(shards, chosen, packing)
    assert store.num_rows > 20  # several parts
    for name, values in expected.items():
        assert np.array_equal(getattr(store, name), values), name
    assert store.num_examples == (400 if chosen is None else len(chosen))
    assert store.num_loss_tokens == np.sum(expected["loss_mask"]) == store.row_loss_tokens.sum()
    assert not [path for path in (tmp_path / "train").iterdir() if path.suffix not in (".npy", ".json")]


def test_a_part_is_read_from_all_runs_in_their_order(tmp_path: Path) -> None:
    runs = Runs(tmp_path, np.int32)
    runs.append(np.array([1, 2, 5]), np.array([0, 2, 3]))
    runs.append(np.array([6, 7]), np.array([0, 0, 2]))
    runs.append(np.array([0]), np.array([0, 1, 1]))
    assert runs.read(0).tolist() == [1, 2, 0] and runs.read(1).tolist() == [5, 6, 7]
    runs.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_file_that_grew_has_the_bytes_that_numpy_writes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    rows = np.arange(12 * (shape or (1,))[0], dtype=np.uint16).reshape(12, *shape)
    np.save(tmp_path / "whole.npy", rows)
    array = GrowingArray(tmp_path / "grown.npy", np.uint16, shape)
    for part in np.split(rows, [2, 2, 7]):
        array.append(part)
    array.close()
    assert (tmp_path / "grown.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
