"""A URI, and the place of its copy in this node's cache: one to one, so that a path is all that code has to pass on.

    s3://bucket/runs/a    <cache>/objects/s3/bucket/runs/a

The cache is the folder RAYMIX_CACHE, by default ~/.cache/raymix. It may be another on every node: what is sent to other
nodes is the URI (`StoragePath` in `workers/settings.py`).
"""

import os
import re
from functools import lru_cache
from pathlib import Path

CACHE_VARIABLE = "RAYMIX_CACHE"
_URI = re.compile(r"(\w[\w+.-]*)://(.*)", re.DOTALL)


def is_uri(text: str) -> bool:
    return _URI.match(text) is not None


def cache_folder() -> Path:
    """The folder of this node's copies; it may not exist yet."""
    return _resolve(os.environ.get(CACHE_VARIABLE) or "~/.cache/raymix")


def place_of(uri: str) -> Path:
    """Where this node's copy of a URI is, whether or not there is one.

    Raises:
        ValueError: the URI has credentials in it, or names that cannot be those of files.
    """
    found = _URI.fullmatch(uri)
    if found is None:
        raise ValueError(f"{uri} is not a URI, which is written scheme://bucket/path")
    scheme, rest = found[1].lower(), found[2].rstrip("/")
    first, *others = rest.split("/")
    if "@" in first:
        raise ValueError(
            f"{scheme}://...@{first.rpartition('@')[2]}: has credentials in it, which would be written to the run's "
            "files; remove them, and give them by the environment"
        )
    if scheme in ("file", "local"):
        raise ValueError(f"{uri}: is on a file system; give the path without {scheme}://")
    if bad := [part for part in (first, *others) if part in ("", ".", "..") or "\0" in part]:
        raise ValueError(f"{uri}: {bad[0]!r} cannot be the name of a bucket or folder; write scheme://bucket/path")
    return _objects().joinpath(scheme, first, *others)


def uri_of(path: Path) -> str | None:
    """The URI of which a path is this node's copy; None if it is an ordinary path."""
    objects = _objects()
    if not path.is_relative_to(objects) or ".." in path.parts:
        return None
    scheme, *parts = path.relative_to(objects).parts or ("",)
    return f"{scheme}://{'/'.join(parts)}" if parts else None


def shown(path: Path) -> str:
    """A path as the user knows it: the URI, if it is a copy."""
    return uri_of(path) or str(path)


def _objects() -> Path:
    return cache_folder() / "objects"


@lru_cache
def _resolve(folder: str) -> Path:
    return Path(folder).expanduser().resolve()
