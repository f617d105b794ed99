"""Files that a configuration names beside its data: what is wrong with them is told before anything starts."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard

from orchestrator.config.machine import left_aside, missing_files
from orchestrator.config.run import RunConfig

GOOD: dict[str, Any] = {"shares": {"math": 0.75, "code": 0.25}, "num_samples": 100}


def faults(folder: Path, mixing: dict[str, Any]) -> list[tuple[Any, str]]:
    data = folder / "rows.jsonl"
    data.write_text(json.dumps({"text": "one"}) + "\n" + json.dumps({"text": "two"}) + "\n")
    config = {
        "name": "r",
        "model": {"path": "owner/model"},
        "domains": {
            "math": {"train": str(data)},
            "code": {"train": str(data)},
            "law": {"eval": str(data)},  # only measured: it has no share
        },
        "mixing": mixing,
        "training": {"max_steps": 1},
    }
    return missing_files(RunConfig.model_validate(config))


def mixings(path: Path) -> list[tuple[str, dict[str, Any]]]:
    return [
        ("shares", {"type": "fixed", "shares": str(path)}),
        ("initial", {"type": "inverse", "initial": str(path)}),
        ("initial", {"type": "versatune", "initial": str(path), "reference": {"math": 1.0, "code": 1.0}}),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD, None),
        ({"shares": {"math": 1.0}}, "no value for ['code']"),
        ({"shares": {"math": 0.5, "code": 0.25, "law": 0.25}}, "['law'] are not domains of this run"),
        ({"shares": {"math": 0.75, "code": 0.75}}, "shares sum to 1.5, not to 1"),
        ({"shares": {"math": 1.5, "code": -0.5}}, "code: Input should be greater than or equal to 0"),
        ({"shares": {"math": "much", "code": 0.5}}, "math: Input should be a valid number"),
        ({"shares": None}, "not a file of shares by domain"),
        ({"loss_nats": {"math": 1.0, "code": 2.0}}, "not a file of shares by domain: 'shares'"),
        ([1, 2], "not a file of shares by domain"),
    ],
)
def test_a_distribution_file(tmp_path: Path, content: Any, message: str | None) -> None:
    path = tmp_path / "distribution.json"
    path.write_text(json.dumps(content))
    for key, mixing in mixings(path):
        found = faults(tmp_path, mixing)
        if message is None:
            assert found == []
        else:
            ((where, what),) = found
            assert where == ("mixing", key) and what.startswith(str(path)) and message in what


def test_a_distribution_file_that_is_not_there_or_no_json(tmp_path: Path) -> None:
    for key, mixing in mixings(tmp_path / "gone.json"):
        ((where, what),) = faults(tmp_path, mixing)
        assert where == ("mixing", key) and "no such file" in what
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    for _, mixing in mixings(broken):
        ((_, what),) = faults(tmp_path, mixing)
        assert "not a file of shares by domain" in what


def test_words_name_no_file(tmp_path: Path) -> None:
    assert faults(tmp_path, {"type": "fixed", "shares": "detected"}) == []
    assert faults(tmp_path, {"type": "inverse", "initial": "detected"}) == []


def config_of(**law: Any) -> RunConfig:
    config = {
        "name": "r",
        "model": {"path": "owner/model"},
        "domains": {"law": law},
        "mixing": {"type": "uniform"},
        "training": {"max_steps": 1},
    }
    return RunConfig.model_validate(config)


def test_folders_and_patterns_are_looked_into(tmp_path: Path) -> None:
    (tmp_path / "law").mkdir()
    for name, rows in (("a.jsonl", 2), ("b.jsonl", 2), ("notes.md", 1)):
        (tmp_path / "law" / name).write_text('{"text": "one"}\n' * rows)
    config = config_of(train=[str(tmp_path / "law")], eval=str(tmp_path / "law" / "*.jsonl"))
    assert missing_files(config) == []
    assert left_aside(config) == [f"domain 'law', train: {tmp_path / 'law'}: 1 left out (another file type): notes.md"]
    (tmp_path / "law" / "c.jsonl").write_bytes(gzip.compress(b"{}"))
    (tmp_path / "law" / "d.csv").write_text("")
    found = missing_files(config)
    empty = f"{tmp_path / 'law' / 'd.csv'}: is empty; give a file with rows or leave it out"
    told = f"{tmp_path / 'law' / 'c.jsonl'}: this is gzip: name it c.jsonl.gz"
    assert found == [
        (("domains", "law", "train", 0), told),
        (("domains", "law", "train", 0), empty),
        (("domains", "law", "eval", 0), told),
    ]


def test_a_pattern_without_a_match_is_told_at_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ((where, what),) = missing_files(config_of(train=["*.jsonl"]))
    assert where == ("domains", "law", "train", 0)
    assert what == f"*.jsonl: nothing matches this pattern (looked in {tmp_path}); correct it"


def test_the_window_of_the_configuration_counts(tmp_path: Path) -> None:
    packer = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    frame = bytearray(packer.compress(b'{"text": "one"}\n' * 3) + packer.flush())
    frame[5] = (28 - 10) << 3  # asks for a window of 256 MiB
    (tmp_path / "a.jsonl.zst").write_bytes(frame)
    config = config_of(train=[str(tmp_path / "a.jsonl.zst")])
    ((_, what),) = missing_files(config)
    assert "set data.zstd_window_mib: 256" in what
    data = config.data.model_copy(update={"zstd_window_mib": 256})
    assert missing_files(config.model_copy(update={"data": data})) == []
