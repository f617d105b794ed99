"""The objects of one bucket: by obstore for S3, Google Cloud and Azure, by fsspec's file system for any other scheme.

Not by pyarrow, which Ray brings: its `copy_files` loses the error of an upload that fails at the end, its deletion
leaves markers of folders behind, and it has no write that only one of two can do.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

if TYPE_CHECKING:
    import fsspec

_PART_BYTES = 16 * 2**20
_MAX_PARTS = 9_000  # of an upload; S3 takes 10,000
_CLIENT = {"connect_timeout": "5s", "timeout": "60s"}
_S3 = ("s3", "s3a")
_OBSTORE = (*_S3, "gs", "az", "azure", "abfs", "abfss")


@dataclass(frozen=True)
class ObjectInfo:
    """What is known of an object without reading it."""

    size: int
    version: str
    """Changes whenever the object does: its tag, or its time."""
    modified_at: float
    """When it was written, in seconds since the epoch; 0 if the storage does not say."""


class Objects(Protocol):
    """A bucket. FileNotFoundError where there is no such object; errors of the server are those of the library."""

    def put(self, key: str, content: Path | bytes) -> None:
        """Store an object, whole or not at all."""

    def put_if(self, key: str, content: bytes, version: str | None) -> bool:
        """Store an object if it has this version, None for none; False if it has not. Not every server can refuse."""

    def read(self, key: str) -> tuple[bytes, str]:
        """Content and version of a small object."""

    def blocks(self, key: str) -> Iterator[bytes]:
        """The content of an object of any size."""

    def look(self, key: str) -> ObjectInfo: ...

    def list(self, folder: str) -> dict[str, ObjectInfo]:
        """All objects below a folder, by their whole key."""

    def delete(self, key: str) -> None: ...


def open_objects(uri: str) -> tuple[Objects, str]:
    """The bucket of a URI and the key in it; ValueError or ImportError if nothing is known for its scheme."""
    scheme, _, rest = uri.partition("://")
    if scheme not in _OBSTORE:
        return FileSystemObjects(_file_system(scheme)), rest
    bucket, _, key = rest.partition("/")
    variables = (name for name in sorted(os.environ) if name.startswith(("AWS_", "GOOGLE_", "AZURE_")))
    return BucketObjects(_bucket(f"{scheme}://{bucket}", tuple((name, os.environ[name]) for name in variables))), key


def endpoint_of(uri: str) -> str | None:
    """The endpoint that the environment gives for a URI."""
    if not uri.startswith(_S3):
        return None
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


class BucketObjects:
    """A bucket by obstore."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def put(self, key: str, content: Path | bytes) -> None:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        self._store.put(key, content, chunk_size=max(_PART_BYTES, size // _MAX_PARTS), max_concurrency=4)

    def put_if(self, key: str, content: bytes, version: str | None) -> bool:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            self._store.put(key, content, mode="create" if version is None else {"e_tag": version})
        except (AlreadyExistsError, PreconditionError):
            return False
        return True

    def read(self, key: str) -> tuple[bytes, str]:
        found = self._store.get(key)
        return bytes(found.bytes()), str(found.meta["e_tag"])

    def blocks(self, key: str) -> Iterator[bytes]:
        # In parts, each of which has to come within the time of a request, and all of the same object.
        meta = self._store.head(key)
        if meta["size"] <= _PART_BYTES:
            yield bytes(self._store.get(key).bytes())
            return
        options = {"if_match": meta["e_tag"]} if meta["e_tag"] else {}
        for start in range(0, meta["size"], _PART_BYTES):
            end = min(start + _PART_BYTES, meta["size"])
            yield bytes(self._store.get(key, options={**options, "range": (start, end)}).bytes())

    def look(self, key: str) -> ObjectInfo:
        return _info(self._store.head(key))

    def list(self, folder: str) -> dict[str, ObjectInfo]:
        return {meta["path"]: _info(meta) for metas in self._store.list(folder, chunk_size=1000) for meta in metas}

    def delete(self, key: str) -> None:
        self._store.delete(key)


class FileSystemObjects:
    """A file system of fsspec."""

    def __init__(self, files: "fsspec.AbstractFileSystem") -> None:
        self._files = files

    def put(self, key: str, content: Path | bytes) -> None:
        if isinstance(content, bytes):
            self._files.pipe_file(key, content)
        else:
            self._files.put_file(str(content), key)

    def put_if(self, key: str, content: bytes, version: str | None) -> bool:
        try:
            now = self.look(key).version
        except FileNotFoundError:
            now = None
        if now == version:
            self.put(key, content)
        return now == version

    def read(self, key: str) -> tuple[bytes, str]:
        return self._files.cat_file(key), self.look(key).version

    def blocks(self, key: str) -> Iterator[bytes]:
        file: BinaryIO
        with self._files.open(key, "rb") as file:
            while block := file.read(_PART_BYTES):
                yield block

    def look(self, key: str) -> ObjectInfo:
        info = self._files.info(key)
        if info["type"] != "file":
            raise FileNotFoundError(key)
        return _info_of(info)

    def list(self, folder: str) -> dict[str, ObjectInfo]:
        found = self._files.find(folder, detail=True)
        return {path.lstrip("/"): _info_of(info) for path, info in found.items()}

    def delete(self, key: str) -> None:
        self._files.rm_file(key)


def _info(meta: Any) -> ObjectInfo:
    version = (meta["e_tag"] or "").strip('"') or meta["last_modified"].isoformat()
    return ObjectInfo(meta["size"], version, meta["last_modified"].timestamp())


def _info_of(info: dict[str, Any]) -> ObjectInfo:
    """From a description of fsspec, whose file systems name times differently."""
    times = (info.get(name) for name in ("mtime", "LastModified", "last_modified", "updated", "created"))
    told = next((time for time in times if time is not None), None)
    modified_at = told.timestamp() if isinstance(told, datetime) else told if isinstance(told, int | float) else 0.0
    return ObjectInfo(int(info["size"]), _version_of(info), float(modified_at))


def _version_of(info: dict[str, Any]) -> str:
    told = (info.get(name) for name in ("ETag", "etag", "blob_id", "md5", "mtime", "LastModified", "created"))
    return " ".join(str(each) for each in told if each is not None)


@lru_cache(maxsize=32)
def _bucket(uri: str, environment: tuple[tuple[str, str], ...]) -> Any:
    """A bucket as the environment has it, which is given so that a change of it counts."""
    from datetime import timedelta

    from obstore.store import from_url

    known = dict(environment)
    retries: Any = {"max_retries": 2, "retry_timeout": timedelta(seconds=5)}  # `client` asks again, and tells the user
    settings: dict[str, Any] = {}
    if uri.startswith(_S3):
        endpoint = endpoint_of(uri)
        settings["region"] = known.get("AWS_REGION") or known.get("AWS_DEFAULT_REGION") or "us-east-1"
        settings |= {"endpoint": endpoint} if endpoint else {}
    client: Any = dict(_CLIENT)
    if str(settings.get("endpoint", "")).startswith("http://"):
        client["allow_http"] = True
    return from_url(uri, client_options=client, retry_config=retries, **settings)


@lru_cache(maxsize=8)
def _file_system(scheme: str) -> Any:
    import fsspec

    return fsspec.filesystem(scheme, use_listings_cache=False)
