"""Crash-safe writing: after a crash a file or folder is either the old one or the new one, never a part.

What belongs on object storage is there, too, when a function returns: only then is it durable.
"""

import os
import shutil
from functools import partial
from pathlib import Path

from workers.events import EVENTS_FILE, log_event
from workers.storage import mirror
from workers.storage.addresses import uri_of
from workers.storage.client import Tell, print_line


def write_durably(path: Path, data: bytes) -> None:
    """Write a file through a temporary one beside it: write, flush to disk, rename, flush the rename.

    Raises:
        OSError: with the path and the number of bytes; an older file of that name is unharmed.
        StorageError: it is written here, but cannot be published.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:  # a full disk is reported without a file name
        raise OSError(error.errno, f"{error.strerror}, writing {len(data):,} bytes", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)
    mirror.publish(path, teller(path))


def temporary_folder(folder: Path) -> Path:
    """A fresh folder beside `folder`, for `commit_folder`; leftovers of an interrupted attempt are removed."""
    temporary = temporary_name(folder)
    replaced = _replaced(folder)
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)
    for leftover in (temporary, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def temporary_name(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.tmp"


def commit_folder(temporary: Path, folder: Path) -> None:
    """Give a finished folder its name once everything is on disk; an older folder of that name is replaced."""
    name_folder(temporary, folder)
    mirror.publish_folder(folder, teller(folder))


def name_folder(temporary: Path, folder: Path) -> None:
    """The same on this node alone, for a folder that its writer publishes."""
    for path in [*temporary.rglob("*"), temporary]:
        fsync(path)
    replaced = _replaced(folder)
    if folder.exists():
        folder.rename(replaced)
    temporary.rename(folder)
    fsync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    mirror.withdraw(path, teller(path))
    path.unlink(missing_ok=True)


def remove_folder(folder: Path, record: str = mirror.RECORD) -> None:
    """Remove a folder, if it is there, however far that gets; on object storage its record goes first."""
    mirror.withdraw_folder(folder, record, teller(folder))
    shutil.rmtree(folder, ignore_errors=True)


def teller(path: Path) -> Tell:
    """What to do with a line about the storage of a path: it is an event of the run, if the path is in one."""
    return print_line if uri_of(path) is None else partial(_tell, path)


def _tell(path: Path, message: str) -> None:
    run_folder = next((each for each in path.parents if (each / EVENTS_FILE).exists()), None)
    if run_folder is None:
        print_line(message)
    else:
        log_event(run_folder, 0, "storage", message)


def fsync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replaced(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.old"
