"""A streamed domain: its parts follow from its sources alone, and hold what the whole domain would hold."""

import gzip
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from pydantic import ValidationError

from workers.config.data import DataConfig, DomainConfig
from workers.config.model import ModelConfig
from workers.data import preparing
from workers.data.parts import PartMaker, next_position, part_folder
from workers.data.preparing import DomainPlan, fingerprint_tokenizer, pack_side, plan_domain
from workers.data.report import Report
from workers.data.store import TokenStore
from workers.data.tokenization import tokenize_shard
from workers.model.tokenizer import load_tokenizer

DATA = DataConfig(max_length=64)
NUM_ROWS, ROWS_PER_PART = 230, 40


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Any:
    return load_tokenizer(ModelConfig(path=str(tokenizer_folder)))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "ROWS_PER_PART", ROWS_PER_PART)


def texts(start: int, stop: int) -> list[str]:
    rng = random.Random(0)
    every = [f"text {n} " + "abc " * rng.randrange(1, 8) for n in range(stop)]
    return every[start:]


def write(path: Path, rows: list[str]) -> Path:
    """The rows as a file of the type that its name says."""
    objects = [{"text": text} for text in rows]
    lines = "".join(json.dumps(each) + "\n" for each in objects)
    match path.suffix:
        case ".parquet":
            parquet.write_table(pa.Table.from_pylist(objects), path, row_group_size=17)
        case ".arrow":
            with pa.ipc.new_file(path, pa.schema([("text", pa.string())])) as file:
                file.write_table(pa.Table.from_pylist(objects), max_chunksize=23)
        case ".csv":
            path.write_text("text\n" + "".join(f'"{text}\nsecond line"\n' for text in rows))
        case ".json":
            path.write_text(json.dumps(objects, indent=1))
        case ".gz":
            path.write_bytes(gzip.compress(lines.encode()))
        case _:
            path.write_text(lines)
    return path


def plan_of(tokenizer: Any, config: DomainConfig, data: DataConfig = DATA) -> DomainPlan:
    return plan_domain("law", config, data, fingerprint_tokenizer(tokenizer))


def stream(*train: Path, **settings: Any) -> DomainConfig:
    return DomainConfig(
        **({"train": list(train), "format": "text", "streaming": True, "eval_fraction": 0.1} | settings)
    )


def make_all(plan: DomainPlan, tokenizer: Any, cache: Path, data: DataConfig = DATA) -> list[TokenStore]:
    """All parts, by one maker."""
    cache.mkdir(exist_ok=True)
    maker = PartMaker(plan, data, tokenizer, cache)
    while maker.make_next():
        pass
    return list(stores_of(plan, cache))


def stores_of(plan: DomainPlan, cache: Path) -> Iterator[TokenStore]:
    number: int | None = 0
    while number is not None:
        store = TokenStore.open(part_folder(cache, plan.key, number) / "train")
        yield store
        number = None if next_position(store.manifest) is None else number + 1


def examples(*stores: TokenStore) -> Counter[bytes]:
    """The ids of every example, and how often it occurs."""
    found: Counter[bytes] = Counter()
    for store in stores:
        for ids, positions, length in zip(store.input_ids, store.position_ids, store.row_lengths, strict=True):
            starts = [*np.flatnonzero(positions[:length] == 0), length]
            found.update(ids[a:b].tobytes() for a, b in pairwise(starts))
    return found


def whole_stores(config: DomainConfig, tokenizer: Any, folder: Path) -> dict[str, TokenStore]:
    """The stores of the same domain without streaming."""
    folder.mkdir()
    plan = plan_of(tokenizer, config.replaced(streaming=False))
    shards = [tokenize_shard(task, DATA, tokenizer, folder) for task in plan.tasks]
    for side in plan.sides:
        pack_side(plan, side, shards, DATA, tokenizer.pad_token_id, folder)
    return {side: TokenStore.open(folder / side) for side in plan.sides}


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet", "a.arrow"])
def test_the_parts_hold_the_training_examples_of_the_whole_domain_and_no_held_out_one(
    name: str, tokenizer: Any, tmp_path: Path
) -> None:
    files = [write(tmp_path / f"{part}{name}", texts(part * 115, part * 115 + 115)) for part in range(2)]
    config = stream(*files)
    parts = make_all(plan_of(tokenizer, config), tokenizer, tmp_path / "cache")
    whole = whole_stores(config, tokenizer, tmp_path / "whole")
    assert examples(*parts) == examples(whole["train"])
    held_out = TokenStore.open(parts[0].folder.parent / "eval")
    assert 0 < held_out.num_examples < whole["eval"].num_examples
    assert not examples(*parts).keys() & examples(whole["eval"]).keys()
    assert [Report(**part.manifest["report"]).num_rows for part in parts] == [40, 40, 40, 40, 40, 30]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet", "a.arrow"])
def test_an_interrupted_reading_makes_the_same_parts(name: str, tokenizer: Any, tmp_path: Path) -> None:
    plan = plan_of(tokenizer, stream(write(tmp_path / name, texts(0, 115)), write(tmp_path / f"b{name}", texts(0, 90))))
    expected = make_all(plan, tokenizer, tmp_path / "cache")
    again = tmp_path / "again"
    again.mkdir()
    has_more = True
    while has_more:  # each part by a maker that finds those before
        number = len(list(again.iterdir()))
        maker = PartMaker(plan, DATA, tokenizer, again)
        for _ in range(number + 1):
            has_more = maker.make_next()
    for one, other in zip(expected, stores_of(plan, again), strict=True):
        assert one.manifest == other.manifest
        assert (one.input_ids == other.input_ids).all() and (one.loss_mask == other.loss_mask).all()


def test_a_part_that_was_deleted_is_made_again(tokenizer: Any, tmp_path: Path) -> None:
    plan = plan_of(tokenizer, stream(write(tmp_path / "a.jsonl", texts(0, NUM_ROWS))))
    before = examples(*make_all(plan, tokenizer, tmp_path / "cache")[2:4])
    for number in (2, 3):
        shutil.rmtree(part_folder(tmp_path / "cache", plan.key, number))
    assert examples(*make_all(plan, tokenizer, tmp_path / "cache")[2:4]) == before


def test_rows_of_one_line_are_in_one_part(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"text": text} for text in texts(0, 100)]))
    config = stream(tmp_path / "a.json")
    (part,) = make_all(plan_of(tokenizer, config), tokenizer, tmp_path / "cache")
    assert examples(part) == examples(whole_stores(config, tokenizer, tmp_path / "whole")["train"])


def test_a_part_may_be_empty(tokenizer: Any, tmp_path: Path) -> None:
    rows = [*texts(0, 40), *["left out"] * 40, *texts(40, 60)]
    path = write(tmp_path / "a.jsonl", rows)
    parts = make_all(plan_of(tokenizer, stream(path, exclude=[{"pattern": "left out"}])), tokenizer, tmp_path / "cache")
    assert [part.num_rows > 0 for part in parts] == [True, False, True]


def test_evaluation_files_are_read_whole_and_nothing_else_is_held_out(tokenizer: Any, tmp_path: Path) -> None:
    train, held_out = write(tmp_path / "a.jsonl", texts(0, 100)), write(tmp_path / "e.jsonl", texts(200, 290))
    parts = make_all(plan_of(tokenizer, stream(train, eval=[held_out])), tokenizer, tmp_path / "cache")
    assert sum(part.num_examples for part in parts) == 100
    assert TokenStore.open(parts[0].folder.parent / "eval").num_examples == 90


def test_a_streamed_domain_that_is_only_measured_has_the_held_out_rows_of_its_first_part(
    tokenizer: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", texts(0, 100))
    (tmp_path / "cache").mkdir()
    plan = plan_of(tokenizer, stream(path, fraction=0, eval_fraction=0.5))
    assert not PartMaker(plan, DATA, tokenizer, tmp_path / "cache").make_next()
    (folder,) = (tmp_path / "cache").iterdir()
    assert [store.name for store in folder.iterdir()] == ["eval"]
    assert 5 < TokenStore.open(folder / "eval").num_examples < 35


def test_the_key_follows_from_names_and_versions_and_the_content_is_not_read(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(0, 100))
    first = plan_of(tokenizer, stream(path)).key
    assert plan_of(tokenizer, stream(path)).key == first
    assert plan_of(tokenizer, stream(path).replaced(streaming=False)).key != first
    os.utime(path, ns=(1, 1))
    assert plan_of(tokenizer, stream(path)).key != first


def test_a_bad_row_of_a_later_part_is_counted_or_ends_the_reading_as_data_says(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(0, 100))
    path.write_text(path.read_text() + "not JSON\n" + write(tmp_path / "b.jsonl", texts(100, 200)).read_text())

    plan = plan_of(tokenizer, stream(path))
    parts = make_all(plan, tokenizer, tmp_path / "cache")
    assert [Report(**part.manifest["report"]).num_bad_rows for part in parts] == [0, 0, 1, 0, 0, 0]
    with pytest.raises(ValueError, match=r"a\.jsonl:101: not JSON.*set data.bad_rows: skip"):
        make_all(plan, tokenizer, tmp_path / "fails", DATA.replaced(bad_rows="fail"))
    with pytest.raises(ValueError, match=r"1 of 120 rows cannot be used.*max_bad_fraction allows 0\.005"):
        make_all(plan, tokenizer, tmp_path / "fraction", DATA.replaced(max_bad_fraction=0.005))
    assert len(list((tmp_path / "fails").iterdir())) == 2  # the parts before it, and nothing half made


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet", "a.arrow"])
def test_a_source_that_ends_early_is_an_error_with_its_line(name: str, tokenizer: Any, tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = ["".join(rng.choices("abcdefghijklmnop", k=40)) for _ in range(20_000)]
    path = write(tmp_path / name, rows)
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    if name == "a.parquet":  # whose end is its index
        damaged[-4000:] = content[-4000:]
    path.write_bytes(damaged)
    plan = plan_of(tokenizer, stream(path)).replaced(rows_per_part=2000)
    with pytest.raises(ValueError, match=rf"{name}:\d+: .*(unreadable|not an Arrow|not a Parquet)"):
        make_all(plan, tokenizer, tmp_path / "cache")


def test_a_file_that_changes_or_goes_while_it_is_read_is_an_error(tokenizer: Any, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.jsonl", texts(0, 60)) for name in "ab"]
    plan = plan_of(tokenizer, stream(*paths))
    maker = PartMaker(plan, DATA, tokenizer, tmp_path)
    maker.make_next()
    os.utime(paths[1], ns=(1, 1))
    with pytest.raises(ValueError, match=r"b\.jsonl: has changed since the run was prepared"):
        maker.make_next()
    paths[1].unlink()
    with pytest.raises(ValueError, match=r"b\.jsonl: No such file"):
        PartMaker(plan, DATA, tokenizer, tmp_path).make_next() and make_all(plan, tokenizer, tmp_path)


def test_a_data_set_of_the_hub_is_streamed(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(2):
        write(folder / f"train-{number}.jsonl", texts(number * 115, number * 115 + 115))
    write(folder / "validation.jsonl", texts(300, 330))
    config = DomainConfig(hub={"path": str(folder), "eval_split": "validation"}, format="text", streaming=True)
    plan = plan_of(tokenizer, config)
    parts = make_all(plan, tokenizer, tmp_path / "cache")
    assert [part.num_examples for part in parts] == [40, 40, 40, 40, 40, 30]
    assert examples(*parts) == examples(
        whole_stores(
            stream(*sorted(folder.glob("train*")), eval=[folder / "validation.jsonl"]), tokenizer, tmp_path / "w"
        )["train"]
    )
    assert TokenStore.open(parts[0].folder.parent / "eval").num_examples == 30
    last = PartMaker(plan, DATA, tokenizer, tmp_path / "cache")
    shutil.rmtree(parts[3].folder.parent)
    while last.make_next():
        pass
    assert examples(*stores_of(plan, tmp_path / "cache")) == examples(*parts)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"eval": ["e.jsonl"], "streaming": True}, "streaming is for training data, and the domain has none"),
        (
            {"train": ["a.jsonl"], "streaming": True, "fraction": 0.5},
            r"`fraction` \(0.5\) is taken from an order of all",
        ),
        ({"train": ["a.jsonl"], "streaming": True, "count": 5}, r"`count` \(5\) is taken from an order of all"),
    ],
)
def test_what_a_stream_cannot_have_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        DomainConfig(**settings)
