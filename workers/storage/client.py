"""Objects by URI: put, get, look, list, delete. Every call waits for a server that is gone, and says so once.

S3 and Google Cloud Storage are reached by pyarrow, any other scheme by the file system that fsspec has for it.
Credentials and endpoints are the usual ones of the environment.
"""

import errno
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

WAIT_SECONDS = 600.0
"""How long a call waits for a server that does not answer, before that is an error."""
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 5.0
_CONNECT_SECONDS, _REQUEST_SECONDS = 5.0, 30.0
_AWS_ERROR = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?")
_WRONG_KEY = re.compile(r"KEY_ID|SIGNATURE|TOKEN|UNRECOGNIZED_CLIENT|CREDENTIALS", re.IGNORECASE)
_LASTING_STATUS = ("301", "400", "401", "403", "405", "501")
# Of this machine's own files, not of the storage.
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EMFILE)

Tell = Callable[[str], None]
"""Takes a line for the user."""
Result = TypeVar("Result")


class StorageError(RuntimeError):
    """Object storage cannot be used; the message names the URI and says what to change."""


@dataclass(frozen=True)
class ObjectInfo:
    """What a listing says of an object."""

    size: int
    modified_ns: int | None


def print_line(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def put(uri: str, path: Path, tell: Tell = print_line) -> None:
    """Store a file as an object, whole or not at all; an older object of that name is replaced."""
    from pyarrow.fs import LocalFileSystem, copy_files

    _ask(uri, lambda files, key: copy_files(str(path), key, LocalFileSystem(), files, use_threads=False), tell)


def put_bytes(uri: str, content: bytes, tell: Tell = print_line) -> None:
    with tempfile.NamedTemporaryFile(prefix="raymix-") as file:
        file.write(content)
        file.flush()
        put(uri, Path(file.name), tell)


def get(uri: str, path: Path, tell: Tell = print_line) -> bool:
    """Bring an object down to a file, whole or not at all; False if there is no such object."""
    from pyarrow.fs import LocalFileSystem, copy_files

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")

    def get_once(files: "FileSystem", key: str) -> bool:
        try:
            copy_files(key, str(temporary), files, LocalFileSystem(), use_threads=False)
        except FileNotFoundError:
            return False
        return True

    try:
        if found := _ask(uri, get_once, tell):
            temporary.replace(path)
        return found
    finally:
        temporary.unlink(missing_ok=True)


def get_bytes(uri: str, tell: Tell = print_line) -> bytes | None:
    """The content of a small object; None if there is no such object."""

    def get_once(files: "FileSystem", key: str) -> bytes | None:
        try:
            with files.open_input_stream(key) as stream:
                content: bytes = stream.read()
                return content
        except FileNotFoundError:
            return None

    return _ask(uri, get_once, tell)


def look(uri: str, tell: Tell = print_line) -> str | None:
    """A text that changes when the object does, of its size, time and tag; None if there is no such object."""
    from pyarrow.fs import FileType, PyFileSystem

    def look_once(files: "FileSystem", key: str) -> str | None:
        info = files.get_file_info(key)
        if info.type != FileType.File:
            return None
        if isinstance(files, PyFileSystem):
            return f"{info.size} {files.handler.fs.checksum(key)}"
        with files.open_input_file(key) as stream:
            tags = {name.lower(): value for name, value in (stream.metadata() or {}).items()}
        return f"{info.size} {info.mtime_ns} {tags.get(b'etag', b'').decode()}"

    return _ask(uri, look_once, tell)


def list_objects(uri: str, tell: Tell = print_line, *, recursive: bool = True) -> dict[str, ObjectInfo]:
    """The objects below a folder, by their path in it, in order; empty if there are none.

    Raises:
        StorageError: an object has a name that cannot be that of a file.
    """
    from pyarrow.fs import FileSelector, FileType

    def list_once(files: "FileSystem", key: str) -> dict[str, ObjectInfo]:
        found = files.get_file_info(FileSelector(key, allow_not_found=True, recursive=recursive))
        start = len(key.rstrip("/")) + 1
        objects = [info for info in found if info.type == FileType.File]
        return {info.path[start:]: ObjectInfo(info.size, info.mtime_ns) for info in objects}

    found = _ask(uri, list_once, tell)
    for name in found:
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise StorageError(f"{uri}/{name}: an object whose name cannot be that of a file; rename or remove it")
    return dict(sorted(found.items()))


def delete(uri: str, tell: Tell = print_line) -> None:
    """Remove an object; nothing happens if there is none."""

    def delete_once(files: "FileSystem", key: str) -> None:
        with suppress(FileNotFoundError):
            files.delete_file(key)

    _ask(uri, delete_once, tell)


def check_writable(folder: str) -> None:
    """Store and remove one small object below a folder; StorageError if that fails, or the server does not answer."""
    uri = f"{folder}/.raymix-check-{os.getpid()}-{time.time_ns()}"
    with impatient():
        put_bytes(uri, b"raymix")
        delete(uri)


@contextmanager
def impatient() -> Iterator[None]:
    """Meanwhile do not wait for a server that does not answer: before a run begins, its address is rather wrong."""
    before = _patience.set(0.0)
    try:
        yield
    finally:
        _patience.reset(before)


_patience = ContextVar("patience", default=WAIT_SECONDS)


def _ask(uri: str, action: Callable[["FileSystem", str], Result], tell: Tell) -> Result:
    """Do it, again and again while the server does not answer.

    StorageError if it answers that it will not, or does not answer for as long as there is patience.
    """
    began, pause, is_told, patience = time.monotonic(), _PAUSE_SECONDS, False, _patience.get()
    while True:
        try:
            done = action(*_connect(uri))
        except (StorageError, FileNotFoundError):
            raise
        except Exception as error:  # the libraries of other schemes have errors of their own
            if _is_of_this_machine(error):
                raise
            if refusal := _find_refusal(uri, error):
                raise StorageError(f"{uri}: {refusal}") from error
            waited, reason = time.monotonic() - began, _in_one_line(error)
            if waited + pause > patience:
                told = f" for {waited:.0f} s" if patience else ""
                raise StorageError(
                    f"{uri}: the storage does not answer{told} ({reason}); check the network, and the endpoint "
                    f"({_endpoint() or 'the default one'})"
                ) from error
            if not is_told:
                is_told = True
                tell(f"{uri} does not answer ({reason}); waiting for up to {patience:.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            continue
        if is_told:
            tell(f"the storage answers again after {time.monotonic() - began:.0f} s")
        return done


def _is_of_this_machine(error: Exception) -> bool:
    """Whether it is not about the storage: a full disk, or a mistake in a program."""
    if isinstance(error, OSError):
        return error.errno in _LOCAL and "AWS" not in str(error) and not isinstance(error, PermissionError)
    return type(error).__module__ == "builtins"


def _find_refusal(uri: str, error: Exception) -> str | None:
    """Why asking again would not help, in one line; None if it may."""
    text = _in_one_line(error)
    found = _AWS_ERROR.search(text)
    code, status = (found[1], found[2]) if found else ("", "")
    bucket = "/".join(uri.split("/")[:3])
    if code == "NO_SUCH_BUCKET" or ("bucket" in text.lower() and "not found" in text.lower()):
        return f"there is no bucket {bucket}; create it, or correct the name or the endpoint"
    if _WRONG_KEY.search(code):
        return f"the storage does not accept the credentials ({code}); {_advice(uri)}"
    if code == "ACCESS_DENIED" or status in ("401", "403") or isinstance(error, PermissionError):
        return f"access denied ({text}); {_advice(uri)}"
    return text if status in _LASTING_STATUS else None


def _advice(uri: str) -> str:
    if not uri.startswith("s3://"):
        return "check the credentials in the environment, and what they permit"
    files = [os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials", "~/.aws/config"]
    if not os.environ.get("AWS_ACCESS_KEY_ID") and not any(Path(file).expanduser().exists() for file in files):
        return "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, and what the key permits"


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _connect(uri: str) -> tuple["FileSystem", str]:
    """The file system of a URI, and the name of the object in it."""
    scheme, _, key = uri.partition("://")
    try:
        if scheme == "s3":
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            who = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
            return _open_s3(key.partition("/")[0], _endpoint(), region, who), key
        if scheme in ("gs", "gcs"):
            return _open_google(), key
        files = _open_other(scheme)
        return files, files.handler.fs._strip_protocol(uri)
    except ImportError as error:
        raise StorageError(f"{uri}: a package is missing: {_in_one_line(error)}") from error
    except ValueError as error:
        raise StorageError(
            f"{uri}: {_in_one_line(error)}; use s3://, gs://, hf:// or another scheme of fsspec"
        ) from None


@lru_cache(maxsize=32)
def _open_s3(bucket: str, endpoint: str | None, region: str | None, who: tuple[str | None, ...]) -> "FileSystem":
    from pyarrow import fs

    settings: dict[str, Any] = {
        "connect_timeout": _CONNECT_SECONDS,
        "request_timeout": _REQUEST_SECONDS,
        "allow_delayed_open": True,  # one request for a small object instead of three
        "region": region,
    }
    if endpoint:
        parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        settings |= {"scheme": parts.scheme, "endpoint_override": parts.netloc + parts.path.rstrip("/")}
    elif not region:
        settings["region"] = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(**settings)


@lru_cache(maxsize=1)
def _open_google() -> "FileSystem":
    from pyarrow import fs

    return fs.GcsFileSystem()


@lru_cache(maxsize=8)
def _open_other(scheme: str) -> Any:
    import fsspec
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return PyFileSystem(FSSpecHandler(fsspec.filesystem(scheme, use_listings_cache=False)))
