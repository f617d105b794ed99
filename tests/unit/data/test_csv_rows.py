"""CSV and TSV against Python's own writer, and what people do to such files by hand."""

import csv
import gzip
import io
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from workers.config.data import DomainConfig
from workers.data import framing, text_rows
from workers.data.files import BadRow, Shard
from workers.data.formats.example import Example
from workers.data.reading import read_rows
from workers.data.sources import plan_sources, read_examples


def read(path: Path, content: bytes) -> dict[int, Any]:
    """Line -> row, or the reason why it is bad; the same whatever the shards."""
    path.write_bytes(content)
    shards = [[Shard()], [Shard(index, 4) for index in range(4)]]
    found = [
        {
            row.line if isinstance(row, BadRow) else row[0]: row.reason if isinstance(row, BadRow) else row[1]
            for shard in parts
            for row in read_rows(path, shard)
        }
        for parts in shards
    ]
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.csv", {}),
        ("a.csv", {"lineterminator": "\n", "quoting": csv.QUOTE_ALL}),
        ("a.csv", {"delimiter": ";"}),
        ("a.csv", {"delimiter": "\t"}),
        ("a.csv", {"delimiter": "|", "lineterminator": "\r", "quoting": csv.QUOTE_ALL}),
        ("a.tsv", {"delimiter": "\t"}),
        ("a.csv.gz", {}),
    ],
)
def test_what_a_writer_writes_is_read_with_the_line_of_its_start(tmp_path: Path, name: str, options: Any) -> None:
    order = random.Random(str(options))
    texts = ["", "a", 'say "x"', "two\nlines", "r\rn\r\n", ";,\t|", "é\U0001f600", " spaces ", "'", '"', "{}", "=1+1"]
    rows = [{"prompt": "".join(order.choices(texts, k=3)), "b c": order.choice(texts)} for _ in range(3000)]
    buffer, starts = io.StringIO(newline=""), []
    writer = csv.DictWriter(buffer, ["prompt", "b c"], **options)
    writer.writeheader()
    for row in rows:
        starts.append(len(buffer.getvalue().encode().splitlines()) + 1 if len(starts) < 40 else 0)
        writer.writerow(row)
    raw = buffer.getvalue().encode()
    found = read(tmp_path / name, gzip.compress(raw) if name.endswith("gz") else raw)
    assert list(found.values()) == rows
    assert list(found)[:40] == starts[:40]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b"\xef\xbb\xbf\"prompt\",completion\r\n1,2\r\n", {2: {"prompt": "1", "completion": "2"}}),
        (b"\n\nprompt , completion\n\n1, 2 \n\n", {5: {"prompt": "1", "completion": " 2 "}}),
        (b",prompt,completion\n0,a,b\n", {2: {"prompt": "a", "completion": "b"}}),  # pandas numbers its rows
        (b"a,b,,\n1,2,,\n", {2: {"a": "1", "b": "2"}}),
        (b"sep=;\r\na;b\r\n1,5;2\r\n", {3: {"a": "1,5", "b": "2"}}),
        (b'a;"b,c"\n1;2\n', {2: {"a": "1", "b,c": "2"}}),
        (b"only\nx;y\n\n", {2: {"only": "x;y"}}),
        (b"a,b\n1\n2,3\n4,5,6\n", {2: "ragged row: 1 value, and the header has 2 names", 3: {"a": "2", "b": "3"},
                                   4: "ragged row: 3 values, and the header has 2 names"}),
        (b"a,a\n1,2\n", {1: "duplicate column: `a`"}),
        (b"b,a, a\n1,2,3\n4,5,6\n", {1: "duplicate column: `a`"}),
        (b",,\n1,2,3\n", {1: "no header: the first line names no column"}),
        (b"a,\xe9\n1,2\n", {1: "no header: not UTF-8: byte 2 is 0xe9; save the file as UTF-8, e.g. with `iconv`"}),
        (b"a,b\n", {1: "the file is empty: it holds a header and no row"}),
        (b"\n \n", {1: "the file is empty"}),
        (b'a,b\n1,"x\ny\xe9"\n2,\0\n3,4\n',
         {2: "not UTF-8: byte 6 is 0xe9; save the file as UTF-8, e.g. with `iconv`", 4: "NUL byte",
          5: {"a": "3", "b": "4"}}),
        (b'a,b\n1,"say \\"x\\""\n3,4\n',
         {2: "not CSV: ',' expected after '\"' (write a quote inside quotes as \"\")", 3: {"a": "3", "b": "4"}}),
        (b'a,b\n1,2\n3,"4\n5,6\n7,8\n',
         {2: {"a": "1", "b": "2"},
          3: "file unreadable from here on: a quote that opens in this row is never closed"}),
    ],
)  # fmt: skip
def test_what_people_have(tmp_path: Path, content: bytes, rows: dict[int, Any]) -> None:
    assert read(tmp_path / "a.csv", content) == rows


def test_long_rows_cost_themselves_and_open_quotes_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (framing, text_rows):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 2**20)
    long = b"x" * 2**20
    assert read(tmp_path / "a.csv", b"a,b\n1,2\n3," + long + b"\n5,6\n") == {
        2: {"a": "1", "b": "2"}, 3: "longer than 1 MiB", 4: {"a": "5", "b": "6"}
    }  # fmt: skip
    told = "file unreadable from here on: a quote that opens in this row is not closed within 1 MiB"
    assert read(tmp_path / "a.csv", b'a,b\n1,2\n3,"' + b"some text\n" * 150_000) == {
        2: {"a": "1", "b": "2"}, 3: told
    }  # fmt: skip


def test_cells_of_list_columns_are_lists_and_others_stay_text(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a,\nb"}, {"role": "assistant", "content": '["not", "a list"]'}]
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(
        [["talk", "completion"], [json.dumps(turns), "[1, 2]"], ["[{'role': 'user'}]", "x"], ["", "y"]]
    )
    path = tmp_path / "a.csv"
    path.write_bytes(buffer.getvalue().encode())
    config = DomainConfig(train=[path], fields={"messages": "talk"})
    (source,) = plan_sources("d", config, "train")
    good, *bad = read_examples(source, Shard())
    assert isinstance(good, Example) and source.format == "messages"
    assert [message["content"] for message in good.messages] == ["a,\nb", turns[1]["content"]]
    assert [type(row) for row in bad] == [BadRow, BadRow]
    assert read(path, buffer.getvalue().encode())[2]["completion"] == "[1, 2]"


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" + b'"some\ntext",x\n' * 60_000, 1))
    tracemalloc.start()
    count = sum(1 for _ in read_rows(path, Shard(0, 50)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count > 600 and peak < 6 * 2**20
