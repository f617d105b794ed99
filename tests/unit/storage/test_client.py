"""Objects on a real server: stored whole, waited for, and every refusal in one line that says what to do."""

import contextlib
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.objects import BUCKET, ObjectServer
from workers.storage import client
from workers.storage.client import StorageError, impatient


@pytest.fixture
def mortal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """A server of its own for a test that kills it."""
    server = ObjectServer(tmp_path / "mortal")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    with contextlib.closing(server):
        yield server


def test_what_is_put_can_be_got_looked_at_listed_and_deleted(uri: str, tmp_path: Path) -> None:
    content = os.urandom(40 * 2**20)  # several parts
    (tmp_path / "big").write_bytes(content)
    client.put(f"{uri}/folder/big", tmp_path / "big")
    client.put(f"{uri}/folder/deep/small", b"small")
    client.put(f"{uri}/folder-beside", b"")
    assert client.get(f"{uri}/folder/big", tmp_path / "new" / "big")
    assert (tmp_path / "new" / "big").read_bytes() == content
    assert client.get_bytes(f"{uri}/folder/deep/small") == b"small"
    listed = client.list_objects(f"{uri}/folder")
    assert {name: info.size for name, info in listed.items()} == {"big": len(content), "deep/small": 5}
    assert client.look(f"{uri}/folder/deep/small") == listed["deep/small"]
    client.put(f"{uri}/folder/deep/small", b"other")
    assert client.look(f"{uri}/folder/deep/small") != listed["deep/small"]
    client.delete(f"{uri}/folder/big")
    client.delete(f"{uri}/folder/big")
    assert list(client.list_objects(f"{uri}/folder")) == ["deep/small"]


def test_what_is_not_there_is_told_as_absent(uri: str, tmp_path: Path) -> None:
    assert client.look(f"{uri}/a") is None
    assert client.get_bytes(f"{uri}/a") is None
    assert client.list_objects(f"{uri}/a") == {}
    assert not client.get(f"{uri}/a", tmp_path / "a")
    assert list(tmp_path.glob("*a*")) == []


def test_of_two_writes_on_a_condition_one_succeeds(uri: str) -> None:
    assert client.put_if(f"{uri}/a", b"one", None)
    assert not client.put_if(f"{uri}/a", b"two", None)
    _, version = client.read(f"{uri}/a") or (b"", "")
    assert client.put_if(f"{uri}/a", b"three", version)
    assert not client.put_if(f"{uri}/a", b"four", version)
    assert client.get_bytes(f"{uri}/a") == b"three"


def test_a_name_that_leads_out_of_the_folder_is_refused() -> None:
    files = fsspec.filesystem("memory")
    files.store["/bucket/data/../../../etc/passwd"] = files.open("/x", "wb")
    with pytest.raises(StorageError, match="an object whose name cannot be that of a file"):
        client.list_objects("memory://bucket/data")
    files.store.clear()


def test_a_scheme_of_fsspec_is_read_and_written(tmp_path: Path) -> None:
    client.put("memory://bucket/a/b.txt", b"one")
    assert client.list_objects("memory://bucket/a").keys() == {"b.txt"}
    assert client.get("memory://bucket/a/b.txt", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"one"
    client.delete("memory://bucket/a/b.txt")
    assert client.look("memory://bucket/a/b.txt") is None


@pytest.mark.parametrize(
    ("place", "changes", "words"),
    [
        (f"s3://{BUCKET}/a", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch"),
        (f"s3://{BUCKET}/a", {"AWS_ACCESS_KEY_ID": "nobody"}, "InvalidAccessKeyId"),
        (f"s3://{BUCKET}/a", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "set AWS_ACCESS_KEY_ID and"),
        (f"s3://{BUCKET}/a", "reader", "AccessDenied"),
        (f"s3://{BUCKET}/a", {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, r"does not answer .*http://127.0.0.1:1\)"),
        ("sftp://host/a", {}, "a package is missing: .*paramiko"),
        ("nonsense://bucket/a", {}, "use s3://, gs://, hf:// or another scheme"),
    ],
)
def test_storage_that_cannot_be_written_is_one_line_at_once(
    uri: str, server: ObjectServer, monkeypatch: pytest.MonkeyPatch, place: str, changes: Any, words: str
) -> None:
    for name, value in (server.reader if changes == "reader" else changes).items():
        monkeypatch.setenv(name, value)
        if not value:
            monkeypatch.delenv(name)
    began = time.monotonic()
    with pytest.raises(StorageError, match=words) as error:
        client.check_writable(place)
    assert time.monotonic() - began < 15
    assert "\n" not in str(error.value) and str(error.value).startswith(f"{place}/.raymix-check")
    assert "wrong" not in str(error.value)


def test_a_server_that_is_gone_is_waited_for_and_told_once(mortal: ObjectServer) -> None:
    client.put(f"s3://{BUCKET}/a", b"one")
    mortal.kill()
    back = threading.Timer(3, mortal.start)
    back.start()
    told: list[str] = []
    assert client.get_bytes(f"s3://{BUCKET}/a", told.append) == b"one"
    back.join()
    gone, again = told
    assert gone.startswith(f"s3://{BUCKET}/a does not answer (") and "waiting for up to 600 s" in gone
    assert again.startswith("the storage answers again after ")
    mortal.kill()
    with impatient(), pytest.raises(StorageError, match="does not answer"):
        client.put(f"s3://{BUCKET}/a", b"two")


def test_an_upload_during_which_the_server_is_killed_is_whole_in_the_end(mortal: ObjectServer, tmp_path: Path) -> None:
    content = os.urandom(200 * 2**20)
    (tmp_path / "big").write_bytes(content)
    told: list[str] = []
    upload = threading.Thread(target=client.put, args=(f"s3://{BUCKET}/big", tmp_path / "big", told.append))
    upload.start()
    time.sleep(0.2)
    mortal.kill()
    assert upload.is_alive()
    time.sleep(1)
    mortal.start()
    upload.join(120)
    assert len(told) == 2
    assert client.get(f"s3://{BUCKET}/big", tmp_path / "again") and (tmp_path / "again").read_bytes() == content


def test_a_full_disk_is_not_taken_for_a_server_that_is_gone(uri: str, tmp_path: Path) -> None:
    client.put(f"{uri}/a", bytes(2**20))
    limits, began = resource.getrlimit(resource.RLIMIT_FSIZE), time.monotonic()
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            client.get(f"{uri}/a", tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert time.monotonic() - began < 5
    assert list(tmp_path.iterdir()) == []
