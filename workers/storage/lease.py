"""One driver at a time on object storage, beside the lock that drivers of one node share.

Object storage has no lock that ends with its holder. So the holder writes its name into an object, and writes it again
every few seconds. Another driver waits until it has seen no change for a minute before it writes its own. A write is
conditional on what was read, so that only one of two succeeds; as some servers ignore conditions, a new holder begins
only if its name is still there a little later. Whoever finds another name in the object has lost it, and ends.

A driver on the node of the last holder waits for nobody: it has the lock of the node.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from workers.storage import client
from workers.storage.addresses import cache_folder, uri_of
from workers.storage.client import StorageError, Tell, print_line

RENEW_SECONDS = 10.0
EXPIRE_SECONDS = 60.0
"""After which a lease that nobody renews is taken over."""
SETTLE_SECONDS = 2.0
_LOOK_SECONDS = 2.0


class LeaseHeldError(StorageError):
    """Another driver renews the lease."""


@dataclass(frozen=True)
class Lease:
    """The content of the object."""

    holder: str
    cache: str
    """The cache in which the holder works (`cache_id`)."""
    host: str
    pid: int
    num_renewed: int = 0
    is_released: bool = False


@contextmanager
def leased(path: Path, waits: bool, on_loss: Callable[[str], None], tell: Tell = print_line) -> Iterator[bool]:
    """Hold the lease of a lock file, whose node's lock is held already; nothing for an ordinary path.

    Args:
        waits: wait until another driver gives it up, instead of being refused.
        on_loss: called from a thread, with what to tell the user, if another driver has taken it.

    Yields:
        whether the copy in this cache was the last that a driver worked on, so that none is newer.

    Raises:
        LeaseHeldError: another driver has it, and this one does not wait.
    """
    uri = uri_of(path)
    if uri is None:
        yield True
        return
    mine = Lease(secrets.token_hex(8), cache_id(), socket.gethostname(), os.getpid())
    before = _take(uri, mine, waits, tell)
    is_over = threading.Event()
    renewal = threading.Thread(target=_renew, args=(uri, mine, is_over, on_loss, tell), name="lease", daemon=True)
    renewal.start()
    try:
        yield before is not None and before.cache == mine.cache
    finally:
        is_over.set()
        renewal.join()
        found = _read(uri, tell)
        if found and found[0].holder == mine.holder:
            _write(uri, replace(found[0], is_released=True), found[1], tell)


def cache_id() -> str:
    """A name that only this node's cache has."""
    path = cache_folder() / "id"
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = path.with_name(f".id.{os.getpid()}.{secrets.token_hex(4)}")
    if not path.exists():
        mine.write_text(secrets.token_hex(8), encoding="utf-8")
        try:
            os.link(mine, path)  # which only one process can do
        except FileExistsError:
            pass
        finally:
            mine.unlink()
    return path.read_text(encoding="utf-8")


def _take(uri: str, mine: Lease, waits: bool, tell: Tell) -> Lease | None:
    """Make the lease mine; the one before, None if there was none."""
    while True:
        found = _read(uri, tell)
        before, version = found or (None, None)
        if before and before.cache != mine.cache and not before.is_released:
            _wait_for(uri, before, waits, tell)
            found = _read(uri, tell)
            version = found and found[1]
        if not _write(uri, mine, version, tell):
            continue
        if before is None or before.cache != mine.cache:
            time.sleep(SETTLE_SECONDS)
        now = _read(uri, tell)
        if now and now[0].holder == mine.holder:
            return before


def _wait_for(uri: str, found: Lease, waits: bool, tell: Tell) -> None:
    """Return once the lease has been given up, or nobody has renewed it for EXPIRE_SECONDS."""
    who = f"the process {found.pid} on {found.host}"
    tell(f"{uri}: {who} trains this, or was killed; looking for up to {EXPIRE_SECONDS:.0f} s whether it lives")
    seen, since = found, time.monotonic()
    while time.monotonic() - since < EXPIRE_SECONDS:
        time.sleep(_LOOK_SECONDS)
        read = _read(uri, tell)
        if read is None or read[0].is_released:
            return
        now = read[0]
        if now != seen:
            if not waits:
                raise LeaseHeldError(f"{uri}: {who} is already training this run; stop it or use another name")
            seen, since = now, time.monotonic()


def _renew(uri: str, mine: Lease, is_over: threading.Event, on_loss: Callable[[str], None], tell: Tell) -> None:
    while not is_over.wait(RENEW_SECONDS):
        try:
            found = _read(uri, tell)
            if found is None or found[0].holder == mine.holder:
                mine = replace(mine, num_renewed=mine.num_renewed + 1)
                _write(uri, mine, found and found[1], tell)
                continue
        except StorageError as error:
            tell(str(error))
            continue
        on_loss(f"{uri}: the process {found[0].pid} on {found[0].host} has taken over this run; this one ends")
        return


def _read(uri: str, tell: Tell) -> tuple[Lease, str] | None:
    """The lease, and the version of its object."""
    found = client.read(uri, tell)
    try:
        return found and (Lease(**json.loads(found[0])), found[1])
    except (ValueError, TypeError) as error:
        raise StorageError(f"{uri}: is not a lease of raymix ({error}); remove it if no driver trains this") from error


def _write(uri: str, lease: Lease, version: str | None, tell: Tell) -> bool:
    """Write it over this version, None for none; False if another one is there."""
    return client.put_if(uri, json.dumps(asdict(lease)).encode(), version, tell)
