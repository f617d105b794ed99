"""What `train`, `eval` and `model.path` name, brought to this node: a file, a folder, or the matches of a pattern.

An object is brought down once, and again when it has changed: beside a copy stands what the storage said of it. A copy
whose object is gone is removed.
"""

import re
from pathlib import Path

from filelock import FileLock

from workers.storage import client, mirror
from workers.storage.addresses import cache_folder, uri_of
from workers.storage.client import StorageError
from workers.storage.stores import ObjectInfo

_PATTERN = re.compile(r"[*?\[]")


def bring(path: Path) -> None:
    """Make the copies of what a path names like the storage; nothing for an ordinary path.

    Raises:
        StorageError: the storage cannot be read.
    """
    uri = uri_of(path)
    if uri is None:
        return
    cache_folder().mkdir(parents=True, exist_ok=True)
    with FileLock(cache_folder() / ".bringing"):
        if info := _look(uri):
            _bring_one(uri, path, info)
            return
        base = _folder_of(path)
        _drop(path)
        _bring_below(base, _matcher(base, path))


def version_of(path: Path) -> str:
    """What changes whenever a file is written: what the storage said of the object, or else when it was modified."""
    note = _note_of(path)
    return note.read_text(encoding="utf-8") if note.exists() else str(path.stat().st_mtime_ns)


def bring_model(path: str) -> None:
    """The same for a model, by its folder or name: one that a run exported, or any other."""
    folder = Path(path)
    mirror.fetch_folder(folder)
    if not mirror.is_published(folder):
        bring(folder)


def _look(uri: str) -> ObjectInfo | None:
    return None if _PATTERN.search(uri) else client.look(uri)


def _folder_of(path: Path) -> Path:
    """The folder itself, or the innermost one around all that a pattern can match."""
    parts = path.parts
    first = next((place for place, part in enumerate(parts) if _PATTERN.search(part)), len(parts))
    return Path(*parts[:first])


def _matcher(base: Path, path: Path) -> re.Pattern[str] | None:
    """What a path in the base has to match; None for all of them."""
    if base == path:
        return None
    import fsspec.utils

    # A pattern may match a folder of a saved data set, all files of which are needed.
    whole = fsspec.utils.glob_translate(str(path.relative_to(base)))
    return re.compile(whole.removesuffix(r"\Z").removesuffix("$") + r"(/.*)?\Z")


def _bring_below(base: Path, wanted: re.Pattern[str] | None) -> None:
    uri = uri_of(base)
    if uri is None:
        raise StorageError(f"{base}: a pattern cannot stand for a bucket; name it")
    found = {name: info for name, info in client.list_objects(uri).items() if not _is_hidden(name)}
    chosen = [name for name in found if wanted is None or wanted.match(name)]
    client.side_by_side(lambda name: _bring_one(f"{uri}/{name}", base / name, found[name]), chosen)
    there = {base / name for name in found}
    for note in base.rglob(".*.object"):
        if (copy := note.with_name(note.name[1 : -len(".object")])) not in there:
            _drop(copy)


def _bring_one(uri: str, path: Path, info: ObjectInfo) -> None:
    note, told = _note_of(path), f"{info.size} {info.version}"
    if path.is_file() and note.exists() and note.read_text(encoding="utf-8") == told:
        return
    note.unlink(missing_ok=True)
    if path.is_dir():
        raise StorageError(f"{uri} is an object and a folder at once; rename one of them")
    if client.get(uri, path):
        note.write_text(told, encoding="utf-8")


def _drop(path: Path) -> None:
    """Remove the copy of an object that is no more."""
    if _note_of(path).exists():
        path.unlink(missing_ok=True)
        _note_of(path).unlink()


def _note_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.object")


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
