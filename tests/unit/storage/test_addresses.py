"""A URI and the place of its copy: one to one, another on every node, and the URI in everything that is written."""

from pathlib import Path

import pytest

from orchestrator.config.sweep import SweepConfig
from orchestrator.runs.lock import bound_settings
from tests.unit.config.test_paths import config
from workers.storage.addresses import is_uri, place_of, uri_of

URIS = ["s3://bucket", "s3://bucket/runs/a b.jsonl", "gs://b/x/y", "hf://datasets/owner/name@main/train.parquet"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYMIX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("uri", URIS)
def test_the_place_of_a_uri_leads_back_to_it(uri: str, cache: Path) -> None:
    assert is_uri(uri)
    assert place_of(uri).is_relative_to(cache)
    assert uri_of(place_of(uri)) == uri
    assert uri_of(place_of(uri) / "below") == f"{uri}/below"


def test_different_uris_have_different_places() -> None:
    assert len({place_of(uri) for uri in URIS}) == len(URIS)
    assert place_of("s3://bucket/runs/") == place_of("s3://bucket/runs")


def test_an_ordinary_path_is_no_copy(tmp_path: Path, cache: Path) -> None:
    for path in (tmp_path, Path("runs"), cache / "id", cache / "objects", cache / "objects" / "s3" / ".." / ".." / "x"):
        assert uri_of(path) is None


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://key:secret@bucket/x", "has credentials in it"),
        ("s3://bucket/../other", "'..' cannot be the name"),
        ("s3://bucket//x", "'' cannot be the name"),
        ("s3:///x", "'' cannot be the name"),
        ("file:///x", "is on a file system; give the path without file://"),
    ],
)
def test_a_uri_that_cannot_be_a_place_is_refused(uri: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        place_of(uri)
    assert "secret@" not in str(error.value)


def test_what_is_written_names_the_uri_and_is_read_on_another_node(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = config(
        output_dir="s3://bucket/runs",
        model={"path": "s3://bucket/base"},
        domains={"a": {"train": ["s3://bucket/a/*.jsonl", "b.jsonl"], "eval": "gs://other/a.jsonl"}},
        start={"run": "s3://bucket/runs/earlier"},
    )
    written = here.model_dump_json()
    assert str(tmp_path) not in written
    monkeypatch.setenv("RAYMIX_CACHE", str(tmp_path / "another"))
    there = SweepConfig.model_validate_json(written)
    assert there.folder == tmp_path / "another/objects/s3/bucket/runs/n"
    assert here.folder == tmp_path / "cache/objects/s3/bucket/runs/n"
    assert there.model.path == str(tmp_path / "another/objects/s3/bucket/base")
    assert there.model_dump_json() == written
    monkeypatch.setenv("RAYMIX_CACHE", str(tmp_path / "cache"))
    assert bound_settings(here) == bound_settings(SweepConfig.model_validate_json(written))
