"""failure.json: why a run has no result."""

import errno
import json
from pathlib import Path

from workers.bounded import read_object
from workers.durable import remove, write_durably
from workers.storage.mirror import refresh

_FILE = "failure.json"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def note_failure(folder: Path, reason: str) -> None:
    write_durably(folder / _FILE, json.dumps({"message": reason}).encode())


def read_failure(folder: Path) -> str | None:
    """Why the run's last attempt has no result; None if it has not failed."""
    refresh(folder / _FILE)
    try:
        return str(read_object(folder / _FILE).get("message", "no reason is recorded"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return f"no reason is known: {explain(error)}"


def forget_failure(folder: Path) -> None:
    remove(folder / _FILE)


def find_full_disk(error: BaseException) -> OSError | None:
    """The system error behind an error that says that there is no room, also behind one of a Ray task."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _NO_ROOM:
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None


def explain(error: BaseException) -> str:
    """An error in one line; a system error with its file, and with advice if the disk is full."""
    if isinstance(error, OSError) and error.strerror is not None:
        place = f"{error.filename}: " if error.filename else ""
        rest = "; free some, or choose another output_dir (and data.cache_dir)" if error.errno in _NO_ROOM else ""
        return f"{place}{error.strerror}{rest}"
    is_ours = isinstance(error, ValueError | RuntimeError | OSError) and str(error)
    return str(error) if is_ours else f"{type(error).__name__}: {error}"
