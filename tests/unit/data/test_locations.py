"""Folders, patterns and saved data sets become files, in one order; what cannot be one side of a domain is told."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from workers.config.data import DomainConfig
from workers.data.files import Shard
from workers.data.formats.example import Example
from workers.data.locations import files_to_carry, find_files, split_of
from workers.data.sources import plan_sources, read_examples

LINE = json.dumps({"prompt": "q", "completion": "a"}) + "\n"


def lay_out(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(LINE.replace("q", f"q {number}"))
    return folder


def save(folder: Path, count: int, num_files: int = 1) -> datasets.Dataset:
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "completion": datasets.Value("string"), "picture": datasets.Image()}
    )
    rows = [
        {"prompt": f"q {n}", "completion": f"a {n}", "picture": {"bytes": b"\xff", "path": None}} for n in range(count)
    ]
    made = datasets.Dataset.from_list(rows, features=features)
    made.save_to_disk(folder, num_shards=num_files)
    return made


def names(path: Path, relative_to: Path) -> list[str]:
    return [str(file.relative_to(relative_to)) for file in find_files(path).files]


def test_a_folder_is_its_files_of_rows_at_any_depth_in_the_order_of_their_paths(tmp_path: Path) -> None:
    folder = lay_out(
        tmp_path / "data", "b.jsonl", "a/2.jsonl", "a/1.jsonl.gz", "c.csv", ".hidden.jsonl", ".cache/x.jsonl",
        "README.md", "a/notes.txt", "dataset_infos.json", "B.JSONL",
    )  # fmt: skip
    assert names(folder, folder) == ["B.JSONL", "a/1.jsonl.gz", "a/2.jsonl", "b.jsonl", "c.csv"]
    found = find_files(folder)
    assert sorted(path.name for path in found.ignored) == ["README.md", "dataset_infos.json", "notes.txt"]
    assert found.told_ignored.startswith("3 left out (another file type): ") and "README.md" in found.told_ignored
    assert find_files(folder / "c.csv").told_ignored == ""


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("*.jsonl", ["b.jsonl", "z.jsonl"]),
        ("**/*.jsonl", ["a/1.jsonl", "a/deep/2.jsonl", "b.jsonl", "z.jsonl"]),
        ("**", ["a/1.jsonl", "a/deep/2.jsonl", "b.jsonl", "c.csv", "z.jsonl"]),
        ("[a-c].*", ["b.jsonl", "c.csv"]),
        ("?/*", ["a/1.jsonl"]),
        ("a/../*.csv", ["a/../c.csv"]),
    ],
)
def test_patterns(tmp_path: Path, pattern: str, files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, "b.jsonl", "z.jsonl", "c.csv", "a/1.jsonl", "a/deep/2.jsonl", ".h.jsonl", "a/README.md")
    assert names(tmp_path / pattern, tmp_path) == files
    monkeypatch.chdir(tmp_path)
    assert [str(file) for file in find_files(Path(pattern)).files] == files
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names(Path("~") / pattern, tmp_path) == files
    absolute = DomainConfig(train=[pattern]).with_absolute_paths().train[0]
    monkeypatch.chdir("/")
    assert names(absolute, tmp_path) == files


def test_a_file_of_the_very_name_goes_before_a_pattern(tmp_path: Path) -> None:
    lay_out(tmp_path, "a[1].jsonl", "a1.jsonl")
    assert names(tmp_path / "a[1].jsonl", tmp_path) == ["a[1].jsonl"]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("none.jsonl", "none.jsonl: no such file; check the path"),
        ("none/*.jsonl", "none/*.jsonl: nothing matches this pattern; correct it"),
        (
            "*.md",
            "matches no .jsonl, .ndjson, .json, .csv, .tsv (these also",
        ),
        ("d*", "matches only folders (data, docs); add /** for the files in them"),
        ("docs", "feather file in this folder; there is a.txt"),
        ("empty", "feather file in this folder"),
        ("README.md", "README.md: not a .jsonl"),
        ("x.xlsx", "feather file; this is an Excel or Word file: save the sheet as CSV"),
        ("data", "contains evaluation files (1.csv, math-test.jsonl) and others (math-train.jsonl); name the files"),
        ("sets", "a saved data set of several splits; name one of them: "),
        ("above", "a saved data set of several splits; name one of them: "),
        ("torn", "its state.json was not written by save_to_disk"),
        ("away", "its state.json names '../data/math-train.jsonl', which is not a file in it"),
    ],
)
def test_what_names_no_side_of_a_domain_is_told_in_one_line(tmp_path: Path, path: str, told: str) -> None:
    lay_out(tmp_path, "README.md", "docs/a.txt", "data/math-train.jsonl", "data/math-test.jsonl", "data/dev/1.csv")
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.xlsx").write_bytes(b"PK\x03\x04" + bytes(26) + b"[Content_Types].xml")
    lay_out(tmp_path, "sets/train/x.jsonl", "above/sets/train/x.jsonl")
    lay_out(tmp_path, "torn/dataset_info.json", "away/dataset_info.json")
    for folder in ("sets", "above/sets"):
        (tmp_path / folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (tmp_path / "torn" / "state.json").write_text("{}")
    (tmp_path / "away" / "state.json").write_text('{"_data_files": [{"filename": "../data/math-train.jsonl"}]}')
    with pytest.raises(ValueError) as caught:
        find_files(tmp_path / path)
    assert told in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="domain 'law': ") as caught:
        plan_sources("law", DomainConfig(train=[tmp_path / path]), "train")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"), ("math-test.jsonl.gz", "eval"), ("validation-00000-of-00003.parquet", "eval"),
        ("train-00001-of-00003.parquet", "train"), ("dev/1.csv", "eval"), ("law_eval_2.jsonl", "eval"),
        ("contest.jsonl", None), ("test-cases.jsonl", None), ("latest/a.jsonl", None),
    ],
)  # fmt: skip
def test_the_split_that_a_name_tells(name: str, split: str | None) -> None:
    assert split_of(Path(name)) == split


def test_evaluation_files_alone_may_be_a_folder(tmp_path: Path) -> None:
    lay_out(tmp_path, "test/a.jsonl", "test/b-test.jsonl")
    assert names(tmp_path, tmp_path) == ["test/a.jsonl", "test/b-test.jsonl"]
    assert names(tmp_path / "test", tmp_path) == ["test/a.jsonl", "test/b-test.jsonl"]


def test_what_save_to_disk_wrote_is_read_in_its_order_without_its_pictures(tmp_path: Path, monkeypatch: Any) -> None:
    opened: list[Any] = []
    monkeypatch.setattr("datasets.Image.decode_example", lambda *arguments, **_: opened.append(arguments))
    save(tmp_path / "set", 700, 3)
    (tmp_path / "set" / "cache-1234.arrow").write_bytes(b"left by map()")
    for path in (tmp_path / "set", tmp_path / "s?t", tmp_path):
        sources = plan_sources("d", DomainConfig(train=[path]), "train")
        rows = [row for source in sources for i in range(2) for row in read_examples(source, Shard(i, 2))]
        texts = [row.messages[0]["content"] for row in rows if isinstance(row, Example)]
        assert texts == [f"q {n}" for n in range(700)] and len(sources) == 3 and not opened
    state = json.loads((tmp_path / "set" / "state.json").read_text())
    state["_data_files"].reverse()
    (tmp_path / "set" / "state.json").write_text(json.dumps(state))
    assert [file.name[:10] for file in find_files(tmp_path / "set").files] == ["data-00002", "data-00001", "data-00000"]


def test_one_split_of_a_saved_dictionary(tmp_path: Path) -> None:
    made = save(tmp_path / "one", 5)
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "sets")
    with pytest.raises(ValueError, match=f"name one of them: {tmp_path}/sets/train, {tmp_path}/sets/test"):
        find_files(tmp_path / "sets")
    assert len(find_files(tmp_path / "sets" / "train").files) == 1


def test_links_are_followed_once_and_keep_their_names(tmp_path: Path) -> None:
    lay_out(tmp_path, "blobs/0a1b", "data/a.jsonl", "away/b.jsonl")
    (tmp_path / "data" / "linked.jsonl").symlink_to(tmp_path / "blobs" / "0a1b")
    (tmp_path / "data" / "away").symlink_to(tmp_path / "away")
    (tmp_path / "away" / "back").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "broken.jsonl").symlink_to(tmp_path / "nowhere")
    assert names(tmp_path / "data", tmp_path / "data") == ["a.jsonl", "away/b.jsonl", "linked.jsonl"]
    config = DomainConfig(train=[tmp_path / "data" / "linked.jsonl"]).with_absolute_paths()
    (source,) = plan_sources("d", config, "train")
    assert len(list(read_examples(source, Shard()))) == 1 and source.name.endswith("linked.jsonl")


def test_what_a_job_has_to_carry(tmp_path: Path) -> None:
    save(tmp_path / "set", 5)
    lay_out(tmp_path, "data/a.jsonl", "data/.env", "data/README.md")
    assert sorted(file.name for file in files_to_carry(tmp_path / "set")) == [
        "data-00000-of-00001.arrow", "dataset_info.json", "state.json"
    ]  # fmt: skip
    assert [file.name for file in files_to_carry(tmp_path / "data")] == ["a.jsonl"]
