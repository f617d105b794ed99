"""Objects by URI: put, get, look, list, delete. Every call waits for a server that is gone, and says so once.

Credentials and endpoints are the usual ones of the environment.
"""

import errno
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import TypeVar

from workers.storage.stores import ObjectInfo, Objects, endpoint_of, open_objects

WAIT_SECONDS = 600.0
"""How long a call waits for a server that does not answer, before that is an error."""
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 5.0
_ANSWER = re.compile(r"<Code>(.*?)</Code>\s*<Message>(.*?)</Message>", re.DOTALL)
_STATUS = re.compile(r"status code: (\d+ [A-Z][\w ]+)")
_AT_A_TIME = 16
_METADATA_SERVICE = "169.254.169.254"  # which gives the machines of a cloud their credentials
_OF_THIS_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EMFILE, errno.EIO)
_LASTING = ("PermissionDeniedError", "UnauthenticatedError", "NotSupportedError", "InvalidPathError")
_LASTING_STATUS = re.compile(r"status code: (301|400|401|403|405|501)\b")

Tell = Callable[[str], None]
"""Takes a line for the user."""
Result = TypeVar("Result")


class StorageError(RuntimeError):
    """Object storage cannot be used; the message names the URI and says what to change."""


def print_line(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def put(uri: str, content: Path | bytes, tell: Tell = print_line) -> None:
    """Store a file or bytes as an object, whole or not at all; an older object of that name is replaced."""
    _ask(uri, lambda objects, key: objects.put(key, content), tell)


def put_if(uri: str, content: bytes, version: str | None, tell: Tell = print_line) -> bool:
    """Store a small object if it has this version, None for none. A server that cannot refuse stores it anyway."""
    return _ask(uri, lambda objects, key: objects.put_if(key, content, version), tell)


def get(uri: str, path: Path, tell: Tell = print_line) -> bool:
    """Bring an object down to a file, whole or not at all; False if there is no such object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")

    try:
        with temporary.open("wb") as file:

            def get_once(objects: Objects, key: str) -> None:
                file.seek(0)
                file.truncate()
                for block in objects.blocks(key):
                    file.write(block)

            try:
                _ask(uri, get_once, tell)
            except FileNotFoundError:
                return False
        temporary.replace(path)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def read(uri: str, tell: Tell = print_line) -> tuple[bytes, str] | None:
    """Content and version of a small object; None if there is no such object."""
    try:
        return _ask(uri, lambda objects, key: objects.read(key), tell)
    except FileNotFoundError:
        return None


def get_bytes(uri: str, tell: Tell = print_line) -> bytes | None:
    """The content of a small object; None if there is no such object."""
    found = read(uri, tell)
    return found and found[0]


def look(uri: str, tell: Tell = print_line) -> ObjectInfo | None:
    """Size and version of an object; None if there is no such object."""
    try:
        return _ask(uri, lambda objects, key: objects.look(key), tell)
    except FileNotFoundError:
        return None


def list_objects(uri: str, tell: Tell = print_line) -> dict[str, ObjectInfo]:
    """The objects below a folder, by their path in it, in order; empty if there are none.

    Raises:
        StorageError: an object has a name that cannot be that of a file.
    """

    def list_once(objects: Objects, key: str) -> dict[str, ObjectInfo]:
        start = len(key) + 1 if key else 0
        return {path[start:]: info for path, info in objects.list(key).items() if not path.endswith("/")}

    try:
        found = _ask(uri, list_once, tell)
    except FileNotFoundError:
        return {}
    for name in found:
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise StorageError(f"{uri}/{name}: an object whose name cannot be that of a file; rename or remove it")
    return dict(sorted(found.items()))


def delete(uri: str, tell: Tell = print_line) -> None:
    """Remove an object; nothing happens if there is none."""
    with suppress(FileNotFoundError):
        _ask(uri, lambda objects, key: objects.delete(key), tell)


def check_writable(folder: str) -> None:
    """Store and remove one small object below a folder; StorageError if that fails, or the server does not answer."""
    uri = f"{folder}/.raymix-check-{os.getpid()}-{time.time_ns()}"
    with impatient():
        put(uri, b"raymix")
        delete(uri)


def side_by_side(action: Callable[[str], object], names: Iterable[str]) -> None:
    """Do the same for many objects, a few at a time."""
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        # Each in a copy of this context, which says how long to wait for a server.
        for each in [pool.submit(copy_context().run, action, name) for name in names]:
            each.result()


@contextmanager
def impatient() -> Iterator[None]:
    """Meanwhile do not wait for a server that does not answer: before a run begins, its address is rather wrong."""
    before = _patience.set(0.0)
    try:
        yield
    finally:
        _patience.reset(before)


_patience = ContextVar("patience", default=WAIT_SECONDS)


def _ask(uri: str, action: Callable[[Objects, str], Result], tell: Tell) -> Result:
    """Do it, again and again while the server does not answer.

    StorageError if it answers that it will not, or does not answer for as long as there is patience.
    """
    began, pause, is_told, patience = time.monotonic(), _PAUSE_SECONDS, False, _patience.get()
    while True:
        try:
            done = action(*_open(uri))
        except (StorageError, FileNotFoundError) as error:
            if _names_no_bucket(error):
                raise StorageError(f"{uri}: {_NO_BUCKET}") from error
            raise
        except Exception as error:  # every library has errors of its own
            if isinstance(error, OSError) and error.errno in _OF_THIS_MACHINE:
                raise
            if type(error).__module__ == "builtins" and not isinstance(error, OSError):
                raise  # a mistake in the program
            if refusal := _find_refusal(uri, error):
                raise StorageError(f"{uri}: {refusal}") from error
            waited, reason = time.monotonic() - began, _in_one_line(error)
            if waited + pause > patience:
                told = f" for {waited:.0f} s" if patience else ""
                raise StorageError(
                    f"{uri}: the storage does not answer{told} ({reason}); check the network, and the endpoint "
                    f"({endpoint_of(uri) or 'the default one'})"
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


_NO_BUCKET = "there is no such bucket; create it, or correct its name or the endpoint"


def _names_no_bucket(error: Exception) -> bool:
    return "NoSuchBucket" in str(error)


def _open(uri: str) -> tuple[Objects, str]:
    try:
        return open_objects(uri)
    except ImportError as error:
        raise StorageError(f"{uri}: a package is missing: {_in_one_line(error)}") from error
    except ValueError as error:
        known = "use s3://, gs://, hf:// or another scheme of fsspec"
        raise StorageError(f"{uri}: {_in_one_line(error)}; {known}") from None


def _find_refusal(uri: str, error: Exception) -> str | None:
    """Why asking again would not help, in one line; None if it may."""
    text, kind = _in_one_line(error), type(error).__name__
    if _names_no_bucket(error):
        return _NO_BUCKET
    if _METADATA_SERVICE in text or "Missing AccessKeyId" in text or "Missing SecretAccessKey" in text:
        return f"no credentials were found; {_advice(uri)}"
    if kind in _LASTING or isinstance(error, PermissionError) or _LASTING_STATUS.search(str(error)):
        return f"{text}; {_advice(uri)}"
    return None


def _advice(uri: str) -> str:
    if not uri.startswith("s3"):
        return "check the credentials in the environment, and what they permit"
    if not os.environ.get("AWS_ACCESS_KEY_ID"):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    return "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, and what the key permits"


def _in_one_line(error: Exception) -> str:
    """What a server answered, or else the first paragraph of an error: further ones are for its debugging."""
    text = str(error)
    if answer := _ANSWER.search(text):
        return f"{answer[1]}: {answer[2]}"
    if answer := _STATUS.search(text):  # an answer to HEAD has no more
        return answer[1]
    return " ".join(text.split("\n\n")[0].split()) or type(error).__name__
