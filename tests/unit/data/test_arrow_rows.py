"""Parquet, Arrow and Feather: what is used comes whole, what is not used stops nothing."""

import datetime
import decimal
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from workers.config.data import DomainConfig
from workers.data.files import BadRow, Shard
from workers.data.formats.example import Example
from workers.data.reading import read_rows
from workers.data.sources import plan_sources, read_examples

GOOD = {"prompt": ["q 0", "q 1", "q 2"], "completion": ["a 0", "a 1 é", "a 2"]}
FAR = pyarrow.array([2**62, None, 1], pyarrow.int64())
TIMES = FAR.cast(pyarrow.timestamp("us"))

# Columns whose values to_pylist() cannot make, or only with a library that may be missing, and others of their kind.
ODD: dict[str, Callable[[], pyarrow.Array]] = {
    "far timestamps": lambda: TIMES,
    "nanoseconds": lambda: FAR.cast(pyarrow.timestamp("ns")),
    "an unknown zone": lambda: FAR.cast(pyarrow.timestamp("us", tz="Mars/Olympus")),
    "far dates": lambda: pyarrow.array([2**30, None, 1], pyarrow.int32()).cast(pyarrow.date32()),
    "times": lambda: FAR.cast(pyarrow.time64("ns")),
    "durations": lambda: FAR.cast(pyarrow.duration("s")),
    "decimals": lambda: pyarrow.array([decimal.Decimal("1.5"), None, decimal.Decimal("2")]),
    "bytes": lambda: pyarrow.array([b"\xff", None, b""]),
    "large bytes": lambda: pyarrow.array([b"\xff", None, b""], pyarrow.large_binary()),
    "halves": lambda: pyarrow.array([1.5, None, 2.0], pyarrow.float16()),
    "words of a dictionary": lambda: pyarrow.array(["x", None, "x"]).dictionary_encode(),
    "maps": lambda: pyarrow.array([[("k", 1)], None, []], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
    "images": lambda: pyarrow.array([{"bytes": b"\xff", "path": "p"}, None, {"bytes": None, "path": None}]),
    "times in lists": lambda: pyarrow.array([[datetime.datetime(2020, 1, 1)], None, []]),
    "not UTF-8": lambda: pyarrow.array([b"\xff\xfe", None, b"x"], pyarrow.binary()).view(pyarrow.string()),
    "identifiers": lambda: pyarrow.array([b"0" * 16, None, b"1" * 16], pyarrow.uuid()),
    "nothing": lambda: pyarrow.nulls(3),
    "long integers": lambda: pyarrow.array([2**64 - 1, None, 0], pyarrow.uint64()),
}  # fmt: skip
ONLY_ARROW: dict[str, Callable[[], pyarrow.Array]] = {
    "months": lambda: pyarrow.array([(1, 2, 3), None, (0, 0, 0)], pyarrow.month_day_nano_interval()),
    "runs": lambda: pyarrow.RunEndEncodedArray.from_arrays([2, 3], ["x", "y"]),
    "unions": lambda: pyarrow.UnionArray.from_sparse(
        pyarrow.array([0, 1, 0], pyarrow.int8()), [pyarrow.array([1, 2, 3]), pyarrow.array(["a", "b", "c"])]
    ),
    "a key twice": lambda: pyarrow.StructArray.from_arrays([pyarrow.array([1, 2, 3])] * 2, names=["k", "k"]),
}


def write(path: Path, table: pyarrow.Table, rows_per_batch: int = 2, **options: Any) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=rows_per_batch, **options)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(table, path, chunksize=rows_per_batch, **options)
    else:
        new = pyarrow.ipc.new_stream if path.stem == "stream" else pyarrow.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=rows_per_batch)
    return path


def examples(path: Path, num_shards: int = 1, **config: Any) -> list[Any]:
    (source,) = plan_sources("d", DomainConfig(train=[path], **config), "train")
    return [row for index in range(num_shards) for row in read_examples(source, Shard(index, num_shards))]


def answers(rows: list[Any]) -> list[str]:
    return [row.messages[-1]["content"] if isinstance(row, Example) else row.reason for row in rows]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow", "a.feather"])
@pytest.mark.parametrize("odd", [*ODD, *ONLY_ARROW])
def test_a_column_that_is_not_used_stops_nothing(tmp_path: Path, name: str, odd: str) -> None:
    if odd in ONLY_ARROW and name == "a.parquet":
        pytest.skip("Parquet has no such type")
    table = pyarrow.table({**GOOD, "odd": (ODD | ONLY_ARROW)[odd]()})
    try:
        write(tmp_path / name, table)
    except pyarrow.ArrowNotImplementedError:
        pytest.skip("cannot be written")
    assert answers(examples(tmp_path / name, 2)) == GOOD["completion"]


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        ("far timestamps", "is timestamp[us], not text"),
        ("bytes", "is binary, not text"),
        ("decimals", "is decimal128(2, 1), not text"),
        ("not UTF-8", "is bytes that are not UTF-8, not text"),
    ],
)
def test_where_it_is_used_its_type_is_told(tmp_path: Path, odd: str, told: str) -> None:
    path = write(tmp_path / "a.arrow", pyarrow.table({"prompt": GOOD["prompt"], "completion": ODD[odd]()}))
    first, second, _ = answers(examples(path))
    assert told in first and "is null, not text" in second


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow", "a.feather"])
@pytest.mark.parametrize("text", [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()])
def test_conversations_of_any_text_type_whole_in_any_shards(tmp_path: Path, name: str, text: Any) -> None:
    turn = pyarrow.struct([("role", text), ("content", text), ("at", pyarrow.timestamp("us"))])
    talks = [
        [{"role": "user", "content": f"q {n}", "at": None}, {"role": "assistant", "content": f"a {n}", "at": None}]
        for n in range(1500)
    ]
    for turns in (pyarrow.list_(turn), pyarrow.large_list(turn), pyarrow.list_(turn, 2)):
        column = pyarrow.array(talks, turns)
        try:
            write(tmp_path / name, pyarrow.table({"messages": column}), 700)
        except pyarrow.ArrowNotImplementedError:
            pytest.skip("cannot be written")
        rows = [examples(tmp_path / name, count) for count in (1, 3)]
        assert sorted(rows[0], key=lambda row: row.line) == sorted(rows[1], key=lambda row: row.line)
        assert sorted(answers(rows[1])) == sorted(f"a {n}" for n in range(1500))
        assert sorted(row.line for row in rows[1]) == list(range(1, 1501))


def known(values: list[dict[str, Any]] | None) -> Any:
    return values and [value and {"s": value["s"], "at": value["at"] is not None} for value in values]


def test_parts_of_lists_are_their_own_after_slices_and_nulls(tmp_path: Path) -> None:
    """Lists with a time in them are taken apart by hand: against plain Python lists, over nulls, empties and slices."""
    at = datetime.datetime(2020, 1, 1)
    items = [
        [{"s": f"{i}-{j}", "at": at if j % 2 else None} if j < 2 else None for j in range(i % 4)] for i in range(50)
    ]
    lists = [item if index % 5 else None for index, item in enumerate(items)]
    item = pyarrow.struct([("s", pyarrow.string()), ("at", pyarrow.timestamp("s"))])
    for turns in (pyarrow.list_, pyarrow.large_list):
        column = pyarrow.array([[], *lists], turns(item))
        write(tmp_path / "a.arrow", pyarrow.table({"x": column.slice(1)}), 7)
        found = [row[1]["x"] for row in read_rows(tmp_path / "a.arrow", Shard()) if not isinstance(row, BadRow)]
        assert [known(values) for values in found] == [known(values) for values in lists]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow", "a.feather"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    columns = [pyarrow.array(["q"] * 9), pyarrow.array(["GOOD"] * 9), pyarrow.array(["WRONG"] * 9)]
    table = pyarrow.Table.from_arrays(columns, names=["prompt", "completion", "completion"])
    if name == "a.feather":
        pyarrow.ipc.new_file(str(tmp_path / name), table.schema).__enter__().write_table(table)
        pytest.skip("the writer of Feather refuses it itself")
    write(tmp_path / name, table)
    for count in (1, 4):
        assert answers(examples(tmp_path / name, count)) == ["duplicate column: `completion`"]


def test_columns_that_are_not_decoded_are_not_read(tmp_path: Path) -> None:
    """Pages of a column of images are damaged beyond reading: the rows come all the same."""
    table = pyarrow.table({**GOOD, "thumbnail": pyarrow.array([b"\xab" * 5000] * 3)})
    path = write(tmp_path / "a.parquet", table, 3, compression="none", use_dictionary=False)
    raw = bytearray(path.read_bytes())
    group = pyarrow.parquet.ParquetFile(path).metadata.row_group(0)
    at = group.column(2).data_page_offset
    raw[at : at + 30] = bytes(30)
    path.write_bytes(raw)
    assert answers(examples(path)) == GOOD["completion"]


@pytest.mark.parametrize(
    ("name", "table", "told"),
    [
        ("a.parquet", pyarrow.table({}), "the file is empty"),
        ("a.arrow", pyarrow.table({}), "the file is empty"),
        ("a.parquet", pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), "the file is empty"),
        ("stream.arrow", pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), "the file is empty"),
        (
            "a.parquet",
            pyarrow.table({"at": TIMES}),
            "missing field: `prompt`; it has 'at'",
        ),
        (
            "a.feather",
            pyarrow.table({"at": TIMES}),
            "missing field: `prompt`; it has 'at'",
        ),
    ],
)
def test_tables_without_rows_or_without_a_column_of_use(tmp_path: Path, name: str, table: Any, told: str) -> None:
    rows = examples(write(tmp_path / name, table), 1, format="prompt_completion")
    assert {row.reason for row in rows} == {told}


def test_all_columns_are_known_where_the_format_is_told_by_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pyarrow.table({"frage": ["q"], "at": TIMES.slice(0, 1)}))
    with pytest.raises(ValueError, match="have the fields at, frage"):
        examples(path)


def test_packed_arrow(tmp_path: Path) -> None:
    for packing in ("lz4", "zstd", "uncompressed"):
        path = write(tmp_path / "a.feather", pyarrow.table(GOOD), compression=packing)
        assert answers(examples(path)) == GOOD["completion"]


def test_a_cut_stream_keeps_what_precedes_the_cut(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    table = pyarrow.table({"prompt": ["q"] * 1200, "completion": [f"a {n}" for n in range(1200)]})
    with pyarrow.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table, max_chunksize=400)
    (tmp_path / "a.arrow").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) * 3 // 4])
    for count in (1, 2):
        rows = examples(tmp_path / "a.arrow", count)
        bad = [row for row in rows if isinstance(row, BadRow)]
        assert len(bad) == 1 and bad[0].line == 801 and bad[0].reason.startswith("unreadable from here on: ")
        good = [row for row in rows if isinstance(row, Example)]
        assert sorted(answers(good)) == sorted(f"a {n}" for n in range(800))
