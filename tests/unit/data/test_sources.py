"""Rows of files and hub folders: nothing lost, nothing raised, every bad row with its line."""

import gzip
import io
import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from workers.config.data import DomainConfig, HubConfig
from workers.data import framing
from workers.data.files import BadRow, Shard
from workers.data.formats.example import Example
from workers.data.sources import Source, plan_sources, read_examples


def good(number: int) -> dict[str, object]:
    return {"prompt": f"question {number}", "completion": f"answer {number} \u00e9"}


def source_of(path: Path) -> Source:
    return plan_sources("d", DomainConfig(train=[path], format="prompt_completion"), "train")[0]


def read(path: Path, shard: Shard = Shard()) -> list[Example | BadRow]:  # noqa: B008 - frozen
    return list(read_examples(source_of(path), shard))


def bad(rows: list[Example | BadRow]) -> dict[int, str]:
    return {row.line: row.reason for row in rows if isinstance(row, BadRow)}


def numbers(rows: list[Example | BadRow]) -> list[int]:
    return [int(row.messages[0]["content"].split()[-1]) for row in rows if isinstance(row, Example)]


def jsonl(count: int) -> bytes:
    return b"".join(json.dumps(good(number)).encode() + b"\n" for number in range(count))


FILES: dict[str, Callable[[int], bytes]] = {
    "a.jsonl": jsonl,
    "a.jsonl.gz": lambda count: gzip.compress(jsonl(count)),
    "a.jsonl.zst": lambda count: zstandard.compress(jsonl(count)),
    "a.json": lambda count: json.dumps([good(number) for number in range(count)], indent=1).encode(),
    "a.json.gz": lambda count: gzip.compress(json.dumps([good(number) for number in range(count)]).encode()),
    "lines.json": jsonl,
    "two-members.jsonl.gz": lambda count: gzip.compress(jsonl(count)) + gzip.compress(b""),
    "two-frames.jsonl.zst": lambda count: zstandard.compress(jsonl(count)) + zstandard.compress(b"\n"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("num_shards", [1, 3])
def test_every_row_once_whatever_the_file_and_the_shards(tmp_path: Path, name: str, num_shards: int) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name](1300))
    rows = [row for index in range(num_shards) for row in read(path, Shard(index, num_shards))]
    assert sorted(numbers(rows)) == list(range(1300)) and not bad(rows)


def test_parquet_rows_and_shards(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.Table.from_pylist([good(number) for number in range(1000)])
    pyarrow.parquet.write_table(table, path, row_group_size=150)
    shards = [read(path, Shard(index, 3)) for index in range(3)]
    assert [number for rows in shards for number in numbers(rows)] == list(range(1000))
    assert [row.line for row in shards[0][:2] if isinstance(row, Example)] == [1, 2]


def test_parquet_with_strings_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    answers = pyarrow.array([b"fine", b"\xff\xfe", b"fine"], pyarrow.binary()).view(pyarrow.string())
    prompts = pyarrow.array(["q 0", "q 1", "q 2"])
    pyarrow.parquet.write_table(pyarrow.table({"prompt": prompts, "completion": answers}), path)
    rows = read(path)
    assert list(bad(rows)) == [2] and numbers(rows) == [0, 2]


def test_damaged_parquet_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([good(number) for number in range(50)]), path)
    path.write_bytes(path.read_bytes()[:-20])
    assert list(bad(read(path))) == [1]


def test_a_thousand_planted_bad_rows_are_all_found(tmp_path: Path) -> None:
    """Every kind of damage, each at a known line, among 4,000 good rows."""
    kinds: list[tuple[bytes, str]] = [
        (b'{"prompt": "q", "completion": "\xff"}', "not UTF-8"),
        (b'{"prompt": "q\x00", "completion": "a"}', "NUL byte"),
        (rb'{"prompt": "q\u0000", "completion": "a"}', "NUL character"),
        (rb'{"prompt": "q\ud800", "completion": "a"}', "lone surrogate"),
        (b'{"prompt": "q", "completion": "a"', "not JSON"),
        (b'{"prompt": "q", "completion": "a"} {"prompt": 1}', "not JSON"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 10_000, "nested too deep"),
        (b'{"a":' * 10_000, "nested too deep"),
        (b'["q", "a"]', "not an object"),
        (b"null", "not an object"),
        (b'"text"', "not an object"),
        (b'{"prompt": "q"}', "missing field"),
        (b'{"completion": "a"}', "missing field"),
        (b'{"prompt": 3, "completion": "a"}', "wrong type"),
        (b'{"prompt": "q", "completion": ["a"]}', "wrong type"),
        (b'{"prompt": "q", "completion": null}', "wrong type"),
        (b'{"prompt": "q", "completion": "  "}', "no assistant text"),
        (b"\xef\xbb\xbf" + b"\x1f\x8b", "not UTF-8"),
        (b"not json at all", "not JSON"),
    ]
    order = random.Random(1)
    planted = [kinds[index % len(kinds)] for index in range(1000)]
    lines: list[tuple[bytes, str | None]] = [(json.dumps(good(number)).encode(), None) for number in range(4000)]
    for row in planted:
        lines.insert(order.randrange(1, len(lines) + 1), row)
    path = tmp_path / "a.jsonl.gz"
    ends = [b"\n", b"\r\n", b"\r"]
    path.write_bytes(gzip.compress(b"".join(line + order.choice(ends) for line, _ in lines), 1))
    rows = [row for index in range(2) for row in read(path, Shard(index, 2))]
    expected = {line: kind for line, (_, kind) in enumerate(lines, start=1) if kind}
    assert {row.line: row.kind for row in rows if isinstance(row, BadRow)} == expected and len(expected) == 1000
    assert all(row.file == str(path) for row in rows if isinstance(row, BadRow))
    assert sorted(numbers(rows)) == list(range(4000))


def test_mixed_line_ends_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [json.dumps(good(number)).encode() for number in range(4)]
    path.write_bytes(b"\xef\xbb\xbf" + rows[0] + b"\r\n\r\n" + rows[1] + b"\r" + rows[2] + b"\n  \n" + rows[3])
    assert [row.line for row in read(path)] == [1, 3, 4, 6] and numbers(read(path)) == [0, 1, 2, 3]


@pytest.mark.parametrize("chunk_bytes", [1, 2, 7, 64, 4096])
def test_framing_does_not_depend_on_the_chunks(chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "MAX_ROW_BYTES", 100)
    chunks = lambda raw: iter(raw[i : i + chunk_bytes] for i in range(0, len(raw), chunk_bytes))  # noqa: E731
    lines = b'{"a":1}\r\n\r\n{"b":"' + b"x" * 300 + b'"}\r{"d":1}\n\n\rend'
    assert list(framing.split_lines(chunks(lines))) == [(1, b'{"a":1}'), (3, None), (4, b'{"d":1}'), (7, b"end")]
    array = (
        rb' [{"a":"]\\\"},"},' + b'\n{"b":"' + rb"\"" * 300 + rb'\\"},' + b'\n{"c":[' + b"1,\n" * 300 + b"2]},[]\n]\n"
    )
    expected = [(1, rb'{"a":"]\\\"},"}'), (2, None), (3, None), (303, b"[]")]
    assert list(framing.split_json(chunks(array))) == expected


@pytest.mark.parametrize(
    ("raw", "line"), [(b'[{"prompt": "q 0", "completion": "a"},\n{"prom', 2), (b"[] []", 1), (b'[\n\n"abc', 3)]
)
def test_damaged_arrays(tmp_path: Path, raw: bytes, line: int) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(raw)
    assert list(bad(read(path))) == [line]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.jsonl.zst"])
def test_an_empty_file_is_a_bad_row(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"")
    assert bad(read(path)) == {1: "the file is empty"}
    assert read(path, Shard(1, 2)) == []


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_cut_compressed_file_keeps_what_precedes_the_cut(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    order = random.Random(0)
    text = b"".join(
        json.dumps({"prompt": f"q {n}", "completion": order.randbytes(300).hex()}).encode() + b"\n" for n in range(2000)
    )
    packed = gzip.compress(text) if name.endswith("gz") else zstandard.compress(text)
    path.write_bytes(packed[: len(packed) * 9 // 10])
    rows = read(path)
    (line,) = bad(rows)
    assert "unreadable from here on" in bad(rows)[line]
    assert numbers(rows) == list(range(line - 1)) and line > 1000


def test_bytes_that_are_not_compressed_at_all(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "a.jsonl.zst"):
        (tmp_path / name).write_bytes(jsonl(3))
        assert list(bad(read(tmp_path / name))) == [1]


def bomb(suffix: str, num_mib: int) -> bytes:
    buffer = io.BytesIO()
    packer: Any
    if suffix == "gz":
        packer = gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9)
    else:
        packer = zstandard.ZstdCompressor().stream_writer(buffer, closefd=False)
    with packer as stream:
        stream.write(jsonl(1))
        for _ in range(num_mib):
            stream.write(b"x" * 2**20)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_bomb_is_given_up_in_flat_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(bomb(suffix, 80))
    source = source_of(path)
    tracemalloc.start()
    rows = list(read_examples(source, Shard()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert numbers(rows) == [0] and list(bad(rows)) == [2]
    assert "200 times" in bad(rows)[2]
    assert peak < 2.5 * framing.MAX_ROW_BYTES


def test_a_line_over_the_limit_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    long = json.dumps({"prompt": "q", "completion": "x" * framing.MAX_ROW_BYTES}).encode()
    path.write_bytes(jsonl(2) + long + b"\n" + jsonl(2))
    rows = read(path)
    assert bad(rows) == {3: "longer than 8 MiB"} and numbers(rows) == [0, 1, 0, 1]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl(1) * 80_000, 1))
    source = source_of(path)
    tracemalloc.start()
    count = sum(1 for _ in read_examples(source, Shard(0, 50)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count > 1000 and peak < 4 * 2**20


def test_a_hub_set_is_read_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(jsonl(700))
    (folder / "test.jsonl").write_bytes(jsonl(5) + b'{"prompt": "q", "completion": ""}\n')
    config = DomainConfig(hub=HubConfig(path=str(folder), eval_split="test"))
    (train,), (evaluation,) = plan_sources("d", config, "train"), plan_sources("d", config, "eval")
    rows = [row for index in range(2) for row in read_examples(train, Shard(index, 2))]
    assert train.format == "prompt_completion" and train.size == 700 and numbers(rows) == list(range(700))
    assert bad(list(read_examples(evaluation, Shard()))) == {6: "no assistant text"}
    missing = DomainConfig(hub=HubConfig(path=str(folder), split="nowhere"))
    with pytest.raises(ValueError, match=r"domain 'd'.*nowhere"):
        plan_sources("d", missing, "train")


def test_the_user_is_told_about_files_that_cannot_be_a_source(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a,b")
    (tmp_path / "odd.jsonl").write_text('{"frage": "q", "antwort": "a"}\n')
    for name, message in (
        ("none.jsonl", "no such file"),
        ("a.txt", "not a .jsonl"),
        ("odd.jsonl", "antwort, frage"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            plan_sources("law", DomainConfig(train=[tmp_path / name]), "train")
        assert "law" in str(error.value) and name in str(error.value)


def test_the_number_of_shards_follows_the_size_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(1))
    assert source_of(path).num_shards == 1
    with path.open("ab") as file:
        file.truncate(40 * 2**20)
    assert source_of(path).num_shards == 3
