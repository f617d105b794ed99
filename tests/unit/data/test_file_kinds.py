"""A file that is not what its name says: read all the same, or refused in one line that says what to do."""

import bz2
import gzip
import io
import json
import lzma
import sqlite3
import tarfile
import zipfile
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
import zstandard

from workers.config.data import DataConfig, DomainConfig
from workers.data.files import BadRow, Shard
from workers.data.preparing import plan_domain
from workers.data.reading import read_rows
from workers.data.sources import plan_sources, read_examples

ROW = {"question": "Où?", "reply": "Là."}
LINE = json.dumps(ROW, ensure_ascii=False).encode() + b"\n"
MIB = 2**20


def read(path: Path, content: bytes | None = None, **options: Any) -> list[Any]:
    """Rows as they are, and the reasons of the bad ones, whatever the shards."""
    if content is not None:
        path.write_bytes(content)
    whole = list(read_rows(path, Shard(), **options))
    parts = [row for index in range(3) for row in read_rows(path, Shard(index, 3), **options)]
    key = lambda row: row.line if isinstance(row, BadRow) else row[0]  # noqa: E731
    assert sorted(map(str, sorted(parts, key=key))) == sorted(map(str, whole))
    assert all("\n" not in row.reason and row.file == str(path) for row in whole if isinstance(row, BadRow))
    return [row.reason if isinstance(row, BadRow) else row[1] for row in whole]


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, LINE)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("rows.jsonl"))
    return buffer.getvalue()


def parquet() -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW]), buffer)
    return buffer.getvalue()


def arrow(is_stream: bool) -> bytes:
    buffer = io.BytesIO()
    table = pyarrow.Table.from_pylist([ROW])
    with (pyarrow.ipc.new_stream if is_stream else pyarrow.ipc.new_file)(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def pretty(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
HTML = b"\n<!DOCTYPE html>\n<html><head><title>404</title></head></html>\n"

REFUSED: list[tuple[str, bytes, str]] = [
    ("a.jsonl", gzip.compress(LINE), "this is gzip: name it a.jsonl.gz"),
    ("a.ndjson", zstandard.compress(LINE), "this is Zstandard: name it a.ndjson.zst"),
    ("a.csv", gzip.compress(b"a,b\n1,2\n"), "this is gzip: name it a.csv.gz"),
    ("a.parquet", gzip.compress(parquet()), "this is gzip: unpack it"),
    ("a.jsonl.gz", LINE, "this is text, not gzip: name it a.jsonl"),
    ("a.json.zst", LINE, "this is text, not Zstandard: name it a.json"),
    ("a.jsonl.gz", zstandard.compress(LINE), "this is Zstandard: name it a.jsonl.zst"),
    ("a.jsonl.gz", gzip.compress(gzip.compress(LINE)), "inside, this is gzip: unpack it"),
    ("a.jsonl.gz", gzip.compress(tarred()), "inside, this is a tar archive: unpack it"),
    ("a.jsonl", parquet(), "this is Parquet: name it a.parquet"),
    ("a.arrow", parquet(), "this is Parquet: name it a.parquet"),
    ("a.parquet", arrow(True), "this is Arrow: name it a.arrow"),
    ("a.jsonl", arrow(False), "this is Arrow: name it a.arrow"),
    ("a.parquet", LINE, "this is text, not Parquet: name it a.jsonl"),
    ("a.arrow", b"a,b\n1,2\n", "this is text, not Arrow: name it a.csv"),
    ("a.feather", b"FEA1" + bytes(40), "this is Feather of version 1: write it again"),
    ("a.parquet", b"PARE" + bytes(40), "this is an encrypted Parquet file: write it without encryption"),
    ("a.jsonl", zipped("rows.jsonl"), "this is a zip archive: unpack it"),
    ("a.csv", zipped("[Content_Types].xml"), "this is an Excel or Word file: save the sheet as CSV"),
    ("a.jsonl", lzma.compress(LINE), "this is xz: unpack it"),
    ("a.jsonl", bz2.compress(LINE), "this is bzip2: unpack it"),
    ("a.jsonl", tarred(), "this is a tar archive: unpack it"),
    ("a.jsonl", HTML, "this is an HTML page, perhaps an error page"),
    ("a.parquet", HTML, "this is an HTML page, perhaps an error page"),
    ("a.csv", b'<?xml version="1.0"?><rows/>', "this is XML or HTML"),
    ("a.parquet", LFS, "this is a Git LFS pointer and not the data: fetch the data with `git lfs pull`"),
    ("a.jsonl.gz", LFS, "this is a Git LFS pointer and not the data: fetch the data with `git lfs pull`"),
    ("a.jsonl", b"\x80\x04\x95" + bytes(20), "this is a Python pickle, which is never loaded"),
    ("a.jsonl", pretty([ROW, ROW]), "this is one JSON array, not one row per line: name it a.json"),
    ("a.jsonl", json.dumps([ROW, ROW]).encode(), "this is one JSON array, not one row per line: name it a.json"),
    ("a.jsonl.gz", gzip.compress(pretty([ROW] * 900)), "this is one JSON array, not one row per line: name it a.json."),
    ("a.json", pretty({"version": 2, "data": [ROW]}), "this is one JSON object with its rows under `data`"),
    ("a.json", pretty({"version": 2, "rows": [ROW] * 900}), "this is one JSON object with its rows under `rows`"),
    ("a.json", json.dumps({"examples": [ROW]}).encode(), "this is one JSON object with its rows under `examples`"),
    ("a.json", b'{"question":{"0":"a","1":"b"},"reply":{"0":"c","1":"d"}}', "this is one JSON object of columns"),
    ("a.jsonl", b'{"question": ["a", "b"], "reply": ["c", "d"]}\n', "this is one JSON object of columns"),
    ("a.json", pretty(ROW), "this is one JSON object over several lines: write one row per line"),
    ("a.jsonl", b"\n".join([pretty(ROW)] * 300), "these are JSON objects over several lines: write one row per line"),
    ("a.jsonl", b"question,reply\na,b\n", "this is not JSON; if it is a table of text, name it a.csv"),
    ("a.jsonl", b"question\treply\na\tb\n", "this is not JSON; if it is a table of text, name it a.tsv"),
    ("a.csv", LINE, "this is JSON: name it a.jsonl"),
    ("a.tsv.gz", gzip.compress(pretty([ROW])), "this is JSON: name it a.json.gz"),
    ("a.jsonl", LINE.decode().encode("utf-16-le"), "this is UTF-16 without a byte order mark: save it as UTF-8"),
    ("a.csv", "a,b\n1,2\n".encode("utf-32-be"), "this is UTF-32 without a byte order mark: save it as UTF-8"),
]


@pytest.mark.parametrize(("name", "content", "told"), REFUSED, ids=[f"{name}: {told}" for name, _, told in REFUSED])
def test_what_cannot_be_read_is_told_in_one_line(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (reason,) = read(tmp_path / name, content)
    assert reason.startswith(told)


def test_a_database_is_told(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "a.jsonl")
    connection.execute("create table rows (a)")
    connection.close()
    assert read(tmp_path / "a.jsonl")[0].startswith("this is an SQLite database: write its rows as")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig", "utf-16-be", "utf-32-be"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz", "a.tsv.zst"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path: Path, encoding: str, name: str) -> None:
    rows = [{"question": f"{number} Où?\U0001f600", "reply": "x" * number} for number in range(900)]
    text = {
        ".jsonl": "\n".join(map(json.dumps, rows)),
        ".json": json.dumps(rows, ensure_ascii=False),
        ".csv": "question,reply\r\n" + "".join(f'"{row["question"]}",{row["reply"]}\r\n' for row in rows),
        ".tsv": "question\treply\n" + "".join(f"{row['question']}\t{row['reply']}\n" for row in rows),
    }["." + name.split(".")[1]]
    mark = "\ufeff" if encoding.endswith("-be") else ""
    raw = (mark + text).encode(encoding)
    packed = {"gz": gzip.compress, "zst": zstandard.compress}.get(name.split(".")[-1], bytes)(raw)
    assert read(tmp_path / name, packed) == rows


def test_a_lone_half_of_a_pair_in_utf16_costs_its_row(tmp_path: Path) -> None:
    lines = [LINE.decode().encode("utf-16-le")] * 3
    lines[1] = lines[1].replace("O".encode("utf-16-le"), b"\x3d\xd8")
    first, second, third = read(tmp_path / "a.jsonl", b"\xff\xfe" + b"".join(lines))
    assert first == third == ROW and second.startswith("not UTF-8: byte ")


@pytest.mark.parametrize("content", [b'{"a": "\xe9"}\n', 'prompt\n"\u0413"\n'.encode("koi8-r"), b"a,b\n1,\x93x\x94\n"])
def test_other_encodings_are_told_with_the_byte(tmp_path: Path, content: bytes) -> None:
    name = "a.jsonl" if content.startswith(b"{") else "a.csv"
    at = next(index for index, byte in enumerate(content.split(b"\n", content.startswith(b"{") ^ 1)[-1]) if byte > 127)
    (reason,) = read(tmp_path / name, content)
    assert reason.startswith(f"not UTF-8: byte {at} is 0x") and "iconv" in reason


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("lines.json", LINE * 2, [ROW, ROW]),
        ("one.json", LINE, [ROW]),
        ("one.jsonl", b'{"messages": [{"role": "user"}]}', [{"messages": [{"role": "user"}]}]),
        ("prompts.jsonl", b'{"prompt": [{"role": "user"}], "completion": [{}]}', None),
        ("empty-list.jsonl", b'{"messages": []}', [{"messages": []}]),
        ("lists.jsonl", b'["q", "a"]\n' + LINE, [["q", "a"], ROW]),
        ("torn-first.jsonl", b'{"question": "a,\n' + LINE, None),
        ("a.NDJSON", LINE, [ROW]),
        ("A.CSV", b"a\n1\n", [{"a": "1"}]),
        ("a.arrow", arrow(True), [ROW]),
        ("b.arrow", arrow(False), [ROW]),
        ("a.feather", arrow(False), [ROW]),
        ("skippable.jsonl.zst", b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + zstandard.compress(LINE), [ROW]),
        ("html-in-a-row.jsonl", b'{"text": "<!DOCTYPE html>"}', [{"text": "<!DOCTYPE html>"}]),
        ("nan.jsonl", b'{"a": -Infinity, "b": 1e999, "c": ' + b"9" * 4000 + b"}", None),
    ],
)
def test_what_is_fine_stays_so(tmp_path: Path, name: str, content: bytes, rows: list[Any] | None) -> None:
    found = read(tmp_path / name, content)
    assert found == rows if rows is not None else not str(found[-1]).startswith("this is")


@pytest.mark.parametrize(
    "row", [b'{"reply": "GOOD", "reply": "WRONG"}', b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}']
)
def test_a_key_twice_is_a_bad_row(tmp_path: Path, row: bytes) -> None:
    """JSON would keep the last value in silence."""
    first, second = read(tmp_path / "a.jsonl", LINE + row)
    name = "reply" if b"reply" in row else "content"
    assert first == ROW and second == f"duplicate key: `{name}`"
    (again,) = read(tmp_path / "a.json", b"[" + row + b"]")
    assert again == second


def long_window(log: int, content: bytes) -> bytes:
    """A Zstandard frame whose header asks for a window of 2**log bytes, as `zstd --long` writes it."""
    packer = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    frame = bytearray(packer.compress(content) + packer.flush())
    frame[5] = (log - 10) << 3
    assert zstandard.get_frame_parameters(bytes(frame)).window_size == 2**log
    return bytes(frame)


def test_a_long_window_is_told_with_the_key_and_read_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    assert read(path, long_window(27, LINE)) == [ROW]
    (reason,) = read(path, long_window(28, LINE))
    assert "window of 256 MiB" in reason and "set data.zstd_window_mib: 256" in reason
    assert read(path, zstd_window_mib=256) == [ROW]
    first, second = read(path, zstandard.compress(LINE) + long_window(31, LINE))
    assert first == ROW and "set data.zstd_window_mib: 2048" in second


def test_the_window_of_the_configuration_reaches_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(long_window(28, b'{"prompt": "q", "completion": "a"}\n'))
    config = DomainConfig(train=[path], format="prompt_completion")
    plans = [plan_domain("d", config, DataConfig(zstd_window_mib=mib), "t") for mib in (128, 256)]
    found = [list(read_examples(plan.tasks[0].source, Shard())) for plan in plans]
    assert isinstance(found[0][0], BadRow) and not isinstance(found[1][0], BadRow)
    assert plans[0].key != plans[1].key, "a store made without the rows would be found again"


@pytest.mark.parametrize("mib", [0, 2049])
def test_windows_that_nothing_can_read(mib: int) -> None:
    with pytest.raises(ValueError, match="zstd_window_mib"):
        DataConfig(zstd_window_mib=mib)


def test_the_stores_of_plain_files_are_found_again(tmp_path: Path) -> None:
    """The window is no part of what is known of a file that needs none."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "q", "completion": "a"}\n' * 3)
    (source,) = plan_sources("d", DomainConfig(train=[path]), "train", zstd_window_mib=512)
    assert source.digest == blake2b(path.read_bytes(), digest_size=16).hexdigest()
    keys = {
        plan_domain("d", DomainConfig(train=[path]), DataConfig(zstd_window_mib=mib), "tokenizer").key
        for mib in (128, 512)
    }
    assert len(keys) == 1


def test_only_the_first_look_is_kept_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.json"
    path.write_bytes(b'{"data": ' + b"[" + b"1," * 20 * MIB + b"1]}")
    tracemalloc.start()
    (reason,) = [row.reason for row in read_rows(path, Shard()) if isinstance(row, BadRow)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reason == "this is one JSON object of more than 8 MiB: write one row per line" and peak < 40 * MIB
