"""Crash-safe writing: after a crash a file or folder is either the old one or the new one, never a part."""

import os
import shutil
from pathlib import Path


def write_durably(path: Path, data: bytes) -> None:
    """Write a file through a temporary one beside it: write, flush to disk, rename, flush the rename.

    Raises:
        OSError: with the path and the number of bytes; an older file of that name is unharmed.
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


def temporary_folder(folder: Path) -> Path:
    """A fresh folder beside `folder`, for `commit_folder`; leftovers of an interrupted attempt are removed."""
    temporary = folder.parent / f".{folder.name}.tmp"
    replaced = _replaced(folder)
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)
    for leftover in (temporary, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def commit_folder(temporary: Path, folder: Path) -> None:
    """Give a finished folder its name once everything is on disk; an older folder of that name is replaced."""
    for path in [*temporary.rglob("*"), temporary]:
        fsync(path)
    replaced = _replaced(folder)
    if folder.exists():
        folder.rename(replaced)
    temporary.rename(folder)
    fsync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def fsync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replaced(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.old"
