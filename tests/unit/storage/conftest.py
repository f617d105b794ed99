"""One S3 server for the tests of this folder that do not kill it; for each a cache, and a folder in the storage."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.objects import BUCKET, ObjectServer


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    with contextlib.closing(ObjectServer(tmp_path_factory.mktemp("objects") / "server")) as server:
        yield server


@pytest.fixture
def uri(server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder in the storage that only this test uses."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAYMIX_CACHE", str(tmp_path / "cache"))
    return f"s3://{BUCKET}/{tmp_path.parent.name}/{tmp_path.name}"
