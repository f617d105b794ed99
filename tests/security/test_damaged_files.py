"""Files that are cut, scrambled or random: rows and bad rows come of them, never an exception, whatever the shards."""

import gzip
import io
import json
import random
import struct
import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from workers.data.files import BadRow, Shard
from workers.data.reading import read_rows

ROWS = [
    {
        "prompt": f"q {n} é",
        "completion": "a" * (n % 7),
        "messages": [{"role": "user", "content": f"x{n}"}, {"role": "assistant", "content": "y"}],
        "number": n,
    }
    for n in range(40)
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
CSV = b"prompt,completion\n" + b"".join(f'"q ""{n}"",\n é",a{n}\r\n'.encode() for n in range(40))


def table() -> pyarrow.Table:
    words = pyarrow.array([str(n % 3) for n in range(40)]).dictionary_encode()
    times = pyarrow.array(range(40), pyarrow.timestamp("us"))
    return pyarrow.Table.from_pylist(ROWS).append_column("word", words).append_column("at", times)


def parquet(**options: str) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table(), buffer, row_group_size=15, **options)
    return buffer.getvalue()


def arrow(is_stream: bool, compression: str | None = None) -> bytes:
    buffer = io.BytesIO()
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    new = pyarrow.ipc.new_stream if is_stream else pyarrow.ipc.new_file
    with new(buffer, table().schema, options=options) as writer:
        writer.write_table(table(), max_chunksize=15)
    return buffer.getvalue()


KINDS: dict[str, Callable[[], bytes]] = {
    "a.jsonl": lambda: LINES,
    "a.json": lambda: json.dumps(ROWS, indent=1).encode(),
    "a.jsonl.gz": lambda: gzip.compress(LINES),
    "a.jsonl.zst": lambda: zstandard.compress(LINES),
    "wide.jsonl": lambda: LINES.decode().encode("utf-16"),
    "wider.json": lambda: json.dumps(ROWS).encode("utf-32"),
    "a.csv": lambda: CSV,
    "a.tsv.gz": lambda: gzip.compress(CSV.replace(b",", b"\t")),
    "a.parquet": parquet,
    "packed.parquet": lambda: parquet(compression="zstd"),
    "a.arrow": lambda: arrow(False),
    "stream.arrow": lambda: arrow(True),
    "a.feather": lambda: arrow(False, "lz4"),
}


def read(path: Path, num_shards: int) -> list[tuple[int, str]]:
    rows = [row for index in range(num_shards) for row in read_rows(path, Shard(index, num_shards))]
    for row in rows:
        assert not isinstance(row, BadRow) or ("\n" not in row.reason and len(row.reason) < 500), row
    return sorted((row.line, row.reason) if isinstance(row, BadRow) else (row[0], str(row[1])) for row in rows)


def check(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    whole, parts = read(path, 1), read(path, 3)
    assert whole and parts, "nothing is said of this file"
    if path.suffix != ".parquet":  # each part tells of the rows that it loses there
        assert [line for line, _ in whole] == [line for line, _ in parts]


@pytest.mark.parametrize("name", KINDS)
def test_cut_anywhere(tmp_path: Path, name: str) -> None:
    content = KINDS[name]()
    for end in range(0, len(content), max(1, len(content) // 150)):
        check(tmp_path / name, content[:end])


@pytest.mark.parametrize("name", KINDS)
def test_scrambled_anywhere(tmp_path: Path, name: str) -> None:
    order, content = random.Random(name), KINDS[name]()
    for _ in range(150):
        scrambled = bytearray(content)
        for _ in range(order.choice((1, 1, 2, 8))):
            scrambled[order.randrange(len(content))] = order.randrange(256)
        check(tmp_path / name, bytes(scrambled))


@pytest.mark.parametrize("name", KINDS)
def test_random_bytes_behind_the_right_beginning_and_without_it(tmp_path: Path, name: str) -> None:
    order, content = random.Random(name), KINDS[name]()
    for number in range(60):
        check(tmp_path / name, content[: number % 2 * 40] + order.randbytes(order.randrange(1, 3000)))


@pytest.mark.parametrize("name", KINDS)
def test_one_kind_under_the_name_of_another(tmp_path: Path, name: str) -> None:
    for content in KINDS.values():
        check(tmp_path / name, content())


@pytest.mark.parametrize("name", ["stream.arrow", "a.arrow"])
def test_a_batch_that_claims_more_rows_than_it_holds_is_given_up(tmp_path: Path, name: str) -> None:
    buffer = io.BytesIO()
    rows = pyarrow.table({"prompt": ["q"] * 1201, "completion": ["a"] * 1201})
    with (pyarrow.ipc.new_stream if name.startswith("s") else pyarrow.ipc.new_file)(buffer, rows.schema) as writer:
        writer.write_table(rows)
    raw, length = buffer.getvalue(), struct.pack("<q", 1201)
    places = [at for at in range(len(raw)) if raw.startswith(length, at)]
    assert len(places) >= 3, "the length of the batch and of each column"
    for at in places:
        (tmp_path / name).write_bytes(raw[:at] + struct.pack("<q", 2**40) + raw[at + 8 :])
        (row,) = islice(read_rows(tmp_path / name, Shard()), 10)
        assert isinstance(row, BadRow) and row.line == 1


def test_a_dictionary_that_claims_more_words_than_it_holds_costs_no_memory(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    words = pyarrow.array([f"word {n}" for n in range(77)])
    rows = pyarrow.table({"word": pyarrow.DictionaryArray.from_arrays(pyarrow.array([5] * 40), words)})
    with pyarrow.ipc.new_stream(buffer, rows.schema) as writer:
        writer.write_table(rows)
    raw, length = buffer.getvalue(), struct.pack("<q", 77)
    places = [at for at in range(len(raw)) if raw.startswith(length, at)]
    assert len(places) >= 2, "of the batch of words and of their column"
    for at in places:
        (tmp_path / "a.arrow").write_bytes(raw[:at] + struct.pack("<q", 2**26) + raw[at + 8 :])
        tracemalloc.start()
        rows_read = list(islice(read_rows(tmp_path / "a.arrow", Shard()), 100))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(rows_read) in (1, 40) and peak < 20 * 2**20
