"""A file or folder of this node's cache, and the object or objects of which it is the copy.

    publish, publish_folder     to the storage: once they return, it survives this node
    withdraw, withdraw_folder   no longer in the storage
    fetch, fetch_folder         from the storage, where the copy is missing
    refresh                     from the storage, whatever the copy is

All of them do nothing for a path that is no copy. A folder is whole in the storage if its record is there, which names
every file with size and SHA-256: it is the last to come and the first to go. What is fetched by it is compared with it.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock

from workers.storage import client
from workers.storage.addresses import uri_of
from workers.storage.client import StorageError, Tell, print_line

RECORD = ".files.json"
"""The record of a folder that has none of its own."""
Files = dict[str, dict[str, Any]]
"""Path in a folder -> size and sha256."""


def publish(path: Path, tell: Tell = print_line) -> None:
    """Store a file; StorageError if it cannot be, or the server is gone for too long."""
    if uri := uri_of(path):
        client.put(uri, path, tell)


def publish_missing(folder: Path, tell: Tell = print_line) -> None:
    """Store the files of a folder that the storage does not have in this size, one by one."""
    if uri := uri_of(folder):
        there = client.list_objects(uri, tell)
        for path in sorted(folder.iterdir()):
            is_there = path.name in there and there[path.name].size == path.stat().st_size
            if not is_there and not path.name.startswith("."):
                client.put(f"{uri}/{path.name}", path, tell)


def publish_folder(folder: Path, tell: Tell = print_line) -> None:
    """Store a whole folder in place of an older one; an interruption leaves none, which counts as absent.

    A copy has the record only once it is stored.
    """
    if uri := uri_of(folder):
        (folder / RECORD).unlink(missing_ok=True)
        files = _describe(folder)
        _withdraw_all(uri, RECORD, tell)
        for name in files:
            client.put(f"{uri}/{name}", folder / name, tell)
        record = json.dumps({"files": files}, indent=1).encode()
        client.put(f"{uri}/{RECORD}", record, tell)
        (folder / RECORD).write_bytes(record)


def is_published(folder: Path) -> bool:
    """Whether a folder needs no more publishing, as an ordinary one never does."""
    return uri_of(folder) is None or (folder / RECORD).exists()


def withdraw(path: Path, tell: Tell = print_line) -> None:
    if uri := uri_of(path):
        client.delete(uri, tell)


def withdraw_folder(folder: Path, record: str = RECORD, tell: Tell = print_line) -> None:
    if uri := uri_of(folder):
        _withdraw_all(uri, record, tell)


def fetch(path: Path, tell: Tell = print_line) -> None:
    """Bring a file down if its copy is missing; without such an object, it stays missing."""
    if (uri := uri_of(path)) and not path.exists():
        client.get(uri, path, tell)


def refresh(path: Path, tell: Tell = print_line) -> None:
    """Make the copy of a small file what the storage has now; without such an object, there is none."""
    if (uri := uri_of(path)) and not client.get(uri, path, tell):
        path.unlink(missing_ok=True)


def fetch_folder(folder: Path, tell: Tell = print_line) -> None:
    """Bring a whole folder down, once for all processes of this node, if its copy is missing.

    StorageError if a file is not what the record says.
    """
    uri = uri_of(folder)
    if uri is None or folder.exists():
        return
    content = client.get_bytes(f"{uri}/{RECORD}", tell)
    if content is None:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.fetching"):
        if folder.exists():  # fetched by another process meanwhile
            return
        temporary = folder.parent / f".{folder.name}.fetched"
        shutil.rmtree(temporary, ignore_errors=True)
        for name, expected in json.loads(content)["files"].items():
            fetch_part(f"{uri}/{name}", temporary / name, expected, tell)
        temporary.mkdir(parents=True, exist_ok=True)
        (temporary / RECORD).write_bytes(content)
        temporary.rename(folder)


def fetch_part(uri: str, path: Path, expected: dict[str, Any], tell: Tell = print_line) -> None:
    """Bring down a file of a folder; StorageError if it is absent or not what the record says."""
    if not client.get(uri, path, tell):
        raise StorageError(f"{uri} is missing, though the record of its folder names it; restore it, or the folder")
    if sha256(path) != expected["sha256"]:
        path.unlink()
        raise StorageError(f"{uri} is damaged: it does not have the SHA-256 of its folder's record; restore it")


def is_current(folder: Path, record: str = RECORD, tell: Tell = print_line) -> bool:
    """Whether a copy of a folder is of what the storage has now, by their records."""
    path = folder / record
    return path.exists() and client.get_bytes(f"{uri_of(folder)}/{record}", tell) == path.read_bytes()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(folder: Path) -> Files:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)} for path in paths
    }


def _withdraw_all(uri: str, record: str, tell: Tell) -> None:
    names = client.list_objects(uri, tell)
    for name in sorted(names, key=lambda name: name != record):
        client.delete(f"{uri}/{name}", tell)
