"""Data on object storage: found as on a file system, brought down once, and again when it changed."""

from pathlib import Path

import pytest

from workers.config.data import DomainConfig
from workers.data.files import Shard
from workers.data.locations import find_files
from workers.data.sources import plan_sources, read_examples
from workers.storage import client
from workers.storage.addresses import place_of
from workers.storage.data import bring, bring_model

ROW = b'{"prompt": "a", "completion": "b"}\n'


@pytest.fixture
def data(uri: str) -> str:
    for name in ("one.jsonl", "two.jsonl", "deep/three.jsonl", "deep/notes.pdf", ".hidden/four.jsonl"):
        client.put(f"{uri}/data/{name}", ROW)
    return f"{uri}/data"


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("", ["deep/three.jsonl", "one.jsonl", "two.jsonl"]),
        ("/one.jsonl", ["one.jsonl"]),
        ("/*.jsonl", ["one.jsonl", "two.jsonl"]),
        ("/**/*.jsonl", ["deep/three.jsonl", "one.jsonl", "two.jsonl"]),
        ("/d*/t[gh]ree.json?", ["deep/three.jsonl"]),
    ],
)
def test_files_folders_and_patterns_are_found_as_on_a_file_system(data: str, path: str, names: list[str]) -> None:
    found = find_files(place_of(data + path))
    assert [str(file.relative_to(place_of(data))) for file in found.files] == names
    assert all(file.read_bytes() == ROW for file in found.files)


def test_a_pattern_brings_down_no_more_than_it_matches(data: str) -> None:
    find_files(place_of(f"{data}/o*.jsonl"))
    assert [path.name for path in place_of(data).rglob("*.jsonl")] == ["one.jsonl"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/three.jsonl", "s3://.*/data/three.jsonl: no such object; check the path"),
        ("/x*.jsonl", r"s3://.*/data/x\*.jsonl: nothing matches this pattern"),
    ],
)
def test_what_is_not_there_is_told_by_its_uri(data: str, path: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        find_files(place_of(data + path))


def test_an_object_is_brought_down_once_and_again_when_it_changed(data: str) -> None:
    for path in (place_of(f"{data}/one.jsonl"), place_of(data)):
        (copy,) = (file for file in find_files(path).files if file.name == "one.jsonl")
        copy.write_bytes(b"mine")  # so that bringing it down again would be seen
        assert find_files(path) and copy.read_bytes() == b"mine"
        client.put(f"{data}/one.jsonl", ROW + ROW)
        assert find_files(path) and copy.read_bytes() == ROW + ROW
        client.put(f"{data}/one.jsonl", ROW)
        assert find_files(path) and copy.read_bytes() == ROW


def test_a_changed_object_is_another_source(data: str) -> None:
    domain = DomainConfig.model_validate({"train": f"{data}/one.jsonl"})
    (before,) = plan_sources("a", domain, "train")
    client.put(f"{data}/one.jsonl", ROW.replace(b'"b"', b'"c"'))
    (after,) = plan_sources("a", domain, "train")
    assert before.digest != after.digest
    assert before.name == f"{data}/one.jsonl"
    assert len(list(read_examples(after, Shard()))) == 1


def test_an_object_that_is_gone_is_no_longer_found(data: str) -> None:
    assert len(find_files(place_of(data)).files) == 3
    client.delete(f"{data}/two.jsonl")
    client.delete(f"{data}/one.jsonl")
    assert [file.name for file in find_files(place_of(data)).files] == ["three.jsonl"]
    client.delete(f"{data}/deep/three.jsonl")
    with pytest.raises(ValueError, match="no such object"):
        find_files(place_of(f"{data}/deep/three.jsonl"))


def test_a_model_is_brought_down_by_its_folder(uri: str) -> None:
    client.put(f"{uri}/base/config.json", b"{}")
    client.put(f"{uri}/base/model.safetensors", b"weights")
    bring_model(str(place_of(f"{uri}/base")))
    assert (place_of(f"{uri}/base") / "model.safetensors").read_bytes() == b"weights"
    bring_model("owner/name")
    bring(Path("anything"))
