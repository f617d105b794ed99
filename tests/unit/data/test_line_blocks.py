"""Blocks of lines found in a file: each part of it reads its own bytes only, and the rows that it would have read."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workers.data import files, framing, reading
from workers.data.files import Rows, Shard
from workers.data.framing import find_blocks, split_lines
from workers.data.reading import find_lines, read_rows

PIECES = [b"\n", b"\r", b"\r\n", b" ", b"{}", b'{"a": 1}', b"x", b"\xc3\xa9", b"\xff"]


def cut(raw: bytes, size: int) -> Iterator[bytes]:
    return (raw[start : start + size] for start in range(0, len(raw), size))


@given(st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join), st.integers(1, 9), st.integers(1, 4))
def test_blocks_begin_where_their_lines_do(raw: bytes, chunk_bytes: int, per_block: int) -> None:
    bounds = find_blocks(cut(raw, chunk_bytes), per_block).tolist()
    assert bounds == sorted(set(bounds)) and bounds[0] == 0 and bounds[-1] == len(raw)
    found = [
        frame
        for block, (start, end) in enumerate(pairwise(bounds))
        for frame in split_lines(cut(raw[start:end], chunk_bytes), block * per_block + 1)
    ]
    assert found == list(split_lines(iter([raw])))


def rows_of(rows: Rows) -> list[Any]:
    return list(rows)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (files, reading):
        monkeypatch.setattr(module, "ROWS_PER_BLOCK", 3)
    monkeypatch.setattr(reading, "_CHUNK_BYTES", 5)
    monkeypatch.setattr(framing, "MAX_ROW_BYTES", 30)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.sampled_from([*PIECES, b"y" * 40]), max_size=60), st.booleans(), st.integers(1, 4))
def test_a_shard_reads_the_same_rows_from_its_blocks(
    small_blocks: None, tmp_path: Path, pieces: list[bytes], has_mark: bool, count: int
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" * has_mark + b'{"a": 0}\n{"b": 0}\n' + b"".join(pieces))
    blocks = find_lines(path)
    assert blocks is not None
    for index in range(count):
        shard = Shard(index, count)
        assert rows_of(read_rows(path, shard, blocks=blocks)) == rows_of(read_rows(path, shard))


def test_a_shard_reads_only_its_own_blocks(small_blocks: None, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(b'{"a": %d}\n' % number for number in range(3000)))
    blocks = find_lines(path)
    assert blocks is not None
    text = bytearray(path.read_bytes())
    others = np.ones(len(text), dtype=bool)
    for block in range(1, 1000, 4):
        others[blocks[block] : blocks[block + 1]] = False
    others[: blocks[700]] = False  # the beginning shows what the file is
    np.frombuffer(text, dtype=np.uint8)[others] = ord("?")
    path.write_bytes(text)
    rows = rows_of(read_rows(path, Shard(1, 4), blocks=blocks))
    assert rows == [(n + 1, {"a": n}) for n in range(3000) if n // 3 % 4 == 1]


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("a.jsonl.gz", b"x"),
        ("a.csv", b"a,b\n1,2\n"),
        ("a.json", b"[{}, {}]"),
        ("a.jsonl", "{}\n{}\n".encode("utf-16")),
        ("a.jsonl", b"\n\n\n\n{}\n"),  # its first block is blank: whether all of it is, only the whole can tell
        ("a.jsonl", b""),
    ],
    ids=["compressed", "table", "array", "utf-16", "blank beginning", "empty"],
)
def test_other_files_are_read_from_their_start(small_blocks: None, tmp_path: Path, name: str, raw: bytes) -> None:
    (tmp_path / name).write_bytes(raw)
    assert find_lines(tmp_path / name) is None
