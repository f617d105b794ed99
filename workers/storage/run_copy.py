"""The copy of a run on this node: made like the storage when a driver or a group of workers begins.

The storage is the truth: a file that it does not have was never announced, and is removed. Of checkpoints and exported
models only the records come down; their files follow when they are read.
"""

import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from workers.storage import client, mirror
from workers.storage.addresses import uri_of
from workers.storage.checkpoints import Listing, orphans, restore_checkpoints
from workers.storage.client import StorageError, Tell, print_line
from workers.storage.lease import cache_id
from workers.storage.lines import EVERY_SECONDS, LinePublisher
from workers.storage.stores import ObjectInfo

DRIVER_LOCK = ".driver.lock"
CHECKPOINTS = "checkpoints"
LINES = ("metrics.jsonl", "samples.jsonl", "mixing.jsonl", "events.jsonl", "raymix.log")
_WHOLE = ("model", "best")
_SMALL_FOLDERS = ("weights", "feedback", "evaluations", "requests", "signals", "study")
_RANKS = re.compile(r"(metrics|samples)\.jsonl|(isolation|evaluation|failure)\.json|(evaluations|signals)/.*")
_RANKS_AT = ".ranks"  # the object that names the cache in which rank 0 works


def restore(folder: Path, *, is_newest: bool, tell: Tell = print_line) -> None:
    """Make a driver's copy of a run like the storage. Its lease is held; nothing for an ordinary folder.

    Args:
        is_newest: this copy was the last that a driver worked on, so its lines may be newer than the storage's.
    """
    uri = uri_of(folder)
    if uri is None:
        return
    listing = _make_alike(uri, folder, is_newest, tell)
    for name in _WHOLE:
        if (folder / name).exists() and not mirror.is_current(folder / name, tell=tell):
            shutil.rmtree(folder / name)
    restore_checkpoints(folder / CHECKPOINTS, _below(listing, CHECKPOINTS), tell)
    for name in orphans(_below(listing, CHECKPOINTS)):
        client.delete(f"{uri}/{CHECKPOINTS}/{name}", tell)


def refresh_for_ranks(folder: Path, cache: str, is_beside_driver: bool, tell: Tell = print_line) -> None:
    """Make this node's copy fit for a new group of workers, unless rank 0 of the last one worked on it.

    Args:
        cache: the name of this node's cache.
        is_beside_driver: the run's driver works on the same copy, and keeps the rest of it current.
    """
    uri = uri_of(folder)
    if uri is None:
        return
    last = client.get_bytes(f"{uri}/{_RANKS_AT}", tell)
    if last == cache.encode() or (last is None and is_beside_driver):
        return
    listing = client.list_objects(uri, tell)
    wanted = [name for name in listing if is_small(name) and (_RANKS.fullmatch(name) or not is_beside_driver)]
    _fetch_all(uri, folder, [name for name in wanted if name not in ("events.jsonl", "mixing.jsonl")], tell)
    for path in small_files(folder):
        name = path.relative_to(folder).as_posix()
        if name not in listing and _RANKS.fullmatch(name):
            path.unlink()
    restore_checkpoints(folder / CHECKPOINTS, _below(listing, CHECKPOINTS), tell)


def claim_for_ranks(folder: Path, cache: str, tell: Tell = print_line) -> None:
    """Say that rank 0 works on the copy in this cache from now on."""
    if uri := uri_of(folder):
        client.put(f"{uri}/{_RANKS_AT}", cache.encode(), tell)


def follow_ranks(folder: Path, cache: str, tell: Tell = print_line, *, is_over: bool = False) -> bool:
    """Bring down what rank 0 of a run wrote, if it works on another copy; whether it does.

    Args:
        is_over: also what is only needed once the training has ended.
    """
    uri = uri_of(folder)
    if uri is None or client.get_bytes(f"{uri}/{_RANKS_AT}", tell) in (None, cache.encode()):
        return False
    with FileLock(folder / ".following"):  # against a thread that follows them, too
        listing = client.list_objects(uri, tell)
        wanted = [name for name in listing if _RANKS.fullmatch(name) and (is_over or "/" not in name)]
        _fetch_all(uri, folder, [name for name in wanted if not _is_as_long(folder / name, listing[name], "")], tell)
        for name in listing:
            if name.startswith("events-"):
                _merge_lines(client.get_bytes(f"{uri}/{name}", tell) or b"", folder / "events.jsonl")
        restore_checkpoints(folder / CHECKPOINTS, _below(listing, CHECKPOINTS), tell, is_training=True)
    return True


def fetch_from_ranks(folder: Path, tell: Tell = print_line) -> None:
    """Bring down all that the ranks of a training that is over wrote on another node."""
    if uri_of(folder):
        follow_ranks(folder, cache_id(), tell, is_over=True)


@contextmanager
def following(folder: Path, tell: Tell = print_line) -> Iterator[None]:
    """Meanwhile publish the lines of a driver's copy, bring down those of ranks that work on another copy, and requests
    of users elsewhere; nothing for an ordinary folder."""
    if uri_of(folder) is None:
        yield
        return
    lines = LinePublisher(folder, {name: name for name in ("events.jsonl", "mixing.jsonl", "raymix.log")}, tell)
    is_over, cache = threading.Event(), cache_id()

    def work() -> None:
        while not is_over.wait(EVERY_SECONDS):
            try:
                follow_ranks(folder, cache, tell)
                _fetch_requests(folder, tell)
            except StorageError as error:
                tell(str(error))

    thread = threading.Thread(target=work, name="storage", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        if not follow_ranks(folder, cache, tell, is_over=True):
            _publish_longer(folder, ("metrics.jsonl", "samples.jsonl"), tell)  # of ranks that were killed
        lines.close()


def _publish_longer(folder: Path, names: Iterable[str], tell: Tell) -> None:
    listing = client.list_objects(f"{uri_of(folder)}", tell)
    for name in names:
        path = folder / name
        if path.exists() and (name not in listing or path.stat().st_size > listing[name].size):
            mirror.publish(path, tell)


def _fetch_requests(folder: Path, tell: Tell) -> None:
    uri = f"{uri_of(folder)}/requests"
    for name in client.list_objects(uri, tell):
        if not (folder / "requests" / name).exists():
            client.get(f"{uri}/{name}", folder / "requests" / name, tell)


def _make_alike(uri: str, folder: Path, is_newest: bool, tell: Tell) -> Listing:
    """Make the small files of a copy those of the storage; what the storage has."""
    listing = client.list_objects(uri, tell)
    small = [name for name in listing if is_small(name)]
    stale = [name for name in small if not (is_newest and _is_as_long(folder / name, listing[name], name))]
    _fetch_all(uri, folder, stale, tell)
    for path in small_files(folder):
        name = path.relative_to(folder).as_posix()
        if name not in listing and not (is_newest and name in LINES):
            path.unlink()
    return listing


def fetch_small(folder: Path, tell: Tell = print_line) -> bool:
    """Bring down the small files of a run, as somebody who only reads it; whether there are any. Nothing happens for an
    ordinary folder, nor for the copy that a driver on this node keeps."""
    uri = uri_of(folder)
    if uri is None or is_held(folder / DRIVER_LOCK):
        return True
    return any(is_small(name) for name in _make_alike(uri, folder, False, tell))


def is_held(lock: Path) -> bool:
    """Whether a process on this node holds a lock file."""
    if not lock.exists():
        return False
    file = FileLock(lock)
    try:
        file.acquire(timeout=0)
    except Timeout:
        return True
    file.release()
    return False


def fetch_model(folder: Path, tell: Tell = print_line) -> None:
    """Bring down the exported models of a run, where their copies are missing or older ones."""
    for name in _WHOLE:
        if (folder / name).exists() and uri_of(folder) and not mirror.is_current(folder / name, tell=tell):
            shutil.rmtree(folder / name)
        mirror.fetch_folder(folder / name, tell)


def _fetch_all(uri: str, folder: Path, names: Iterable[str], tell: Tell) -> None:
    client.side_by_side(lambda name: client.get(f"{uri}/{name}", folder / name, tell), names)


def is_small(name: str) -> bool:
    """Whether a file of a run, by its path in the run's folder, comes down with every copy."""
    top, _, rest = name.partition("/")
    return not top.startswith(".") and (not rest or top in _SMALL_FOLDERS)


def _is_as_long(path: Path, info: ObjectInfo, name: str) -> bool:
    if not path.exists():
        return False
    size = path.stat().st_size
    return size >= info.size if name in LINES else size == info.size


def small_files(folder: Path) -> Iterator[Path]:
    """Those of a copy."""
    if not folder.exists():
        return
    for path in [*folder.iterdir(), *(path for part in _SMALL_FOLDERS for path in (folder / part).glob("**/*"))]:
        is_ours = path.suffix in (".json", ".jsonl", ".html", ".safetensors", ".npz")
        if path.is_file() and is_ours and not path.name.startswith("."):
            yield path


def _below(listing: Listing, folder: str) -> dict[str, ObjectInfo]:
    start = f"{folder}/"
    return {name.removeprefix(start): info for name, info in listing.items() if name.startswith(start)}


def _merge_lines(others: bytes, path: Path) -> None:
    """Append whole lines that a file does not have."""
    there = set(path.read_bytes().splitlines()) if path.exists() else set()
    new = [line for line in others.splitlines(keepends=True) if line.endswith(b"\n") and line.rstrip() not in there]
    if new:
        with path.open("ab") as file:
            file.write(b"".join(new))
