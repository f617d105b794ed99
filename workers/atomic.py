"""Writing so that a crash leaves either the old file or the new one, never half of one."""

import os
from pathlib import Path


def write_durably(path: Path, data: bytes) -> None:
    """Write a file through a temporary one beside it: written, flushed to disk, renamed, and the rename flushed.

    Raises:
        OSError: the disk refused, with the path and the number of bytes; an older file of that name is still whole.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:  # a full disk is reported without a name
        raise OSError(error.errno, f"{error.strerror}, writing {len(data):,} bytes", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
