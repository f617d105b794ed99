"""Checkpoints on object storage: every rank's files, and the records by which a checkpoint is whole.

    checkpoints/step-00000600/manifest.json, ...     as on a file system; the manifest is the last to come
    checkpoints/best-00000600/manifest.json, ...     of the best model, locally `best/`: the newest whole one counts

Of the copies on a node only the records are brought down, and a file when it is read.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from workers.storage import client, mirror
from workers.storage.addresses import uri_of
from workers.storage.client import Tell, print_line
from workers.storage.stores import ObjectInfo

MANIFEST = "manifest.json"
"""The record of a checkpoint."""
STORED_AS = ".stored-as"
"""In the copy of a folder that has another name in the storage: that name."""
BEST = "best"
Listing = Mapping[str, ObjectInfo]


@dataclass(frozen=True)
class StoredCheckpoint:
    """Where the files of one that is being written go; nothing is stored if its folder is an ordinary one."""

    folder: Path
    """Of the checkpoints."""
    name: str
    """Of this one in the storage."""
    best: str | None
    """Of the best model that has the same masters."""
    keeps_copy: bool
    """Whether a copy stays here: on the node of rank 0, which commits it."""

    def publish(self, path: Path, tell: Tell = print_line) -> None:
        """Store a file of a rank."""
        if uri := uri_of(self.folder):
            client.put(f"{uri}/{self.name}/{path.name}", path, tell)
            if self.best and path.name.startswith("masters-"):
                client.put(f"{uri}/{self.best}/{path.name}", path, tell)
            if not self.keeps_copy:
                path.unlink()


def seal(copy: Path, stored_as: str, tell: Tell = print_line) -> None:
    """Store the records of a checkpoint whose other files are stored: from now on it is whole."""
    if uri := uri_of(copy.parent):
        for name in ("state.json", MANIFEST):
            client.put(f"{uri}/{stored_as}/{name}", copy / name, tell)
        if copy.name == BEST:
            drop_best(copy.parent, stored_as, tell)


def fetch_checkpoint(folder: Path, tell: Tell = print_line) -> None:
    """Bring down the records of a checkpoint if this node has no copy of it."""
    for name in ("state.json", MANIFEST):
        mirror.fetch(folder / name, tell)


def fetch_checkpoint_file(path: Path, tell: Tell = print_line) -> None:
    """Bring down a file of a checkpoint if its copy is missing; StorageError if it is not what the manifest says."""
    folder = path.parent
    if uri_of(folder) is None or path.exists():
        return
    files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    mirror.fetch_part(f"{stored_at(folder)}/{path.name}", path, files[path.name], tell)


def stored_sizes(folder: Path, tell: Tell = print_line) -> dict[str, int]:
    """Sizes of the files that the storage has of a checkpoint."""
    listing = client.list_objects(stored_at(folder), tell)
    return {name: info.size for name, info in listing.items()}


def stored_at(folder: Path) -> str:
    """The URI of a checkpoint's folder."""
    note = folder / STORED_AS
    name = note.read_text(encoding="utf-8") if note.exists() else folder.name
    return f"{uri_of(folder.parent)}/{name}"


def best_name(step: int) -> str:
    """The name in the storage of the best model after `step` steps. A local folder is replaced by renaming; here a
    newer one stands beside the older one until it is whole."""
    return f"{BEST}-{step:08d}"


def drop_best(checkpoints: Path, keep: str | None = None, tell: Tell = print_line) -> None:
    """Remove the best models from the storage, but for one."""
    if uri := uri_of(checkpoints):
        names = client.list_objects(uri, tell)
        for folder in {name.split("/")[0] for name in names if name.startswith(f"{BEST}-")} - {keep}:
            mirror.withdraw_folder(checkpoints / folder, MANIFEST, tell)


def restore_checkpoints(folder: Path, listing: Listing, tell: Tell, *, is_training: bool = False) -> None:
    """Make the copies of a folder of checkpoints those that are whole in the storage, by their records. `is_training`:
    a rank on this node may be writing one."""
    whole = {name.split("/")[0] for name in listing if name.endswith(f"/{MANIFEST}")}
    bests = sorted(name for name in whole if name.startswith(f"{BEST}-"))
    wanted = {name: name for name in whole if name.startswith("step-")}
    wanted |= {BEST: bests[-1]} if bests else {}
    for path in folder.iterdir() if folder.exists() else ():
        is_begun = is_training and path.name.startswith(".")  # by a rank on this node
        if path.is_dir() and path.name not in wanted and not is_begun:
            shutil.rmtree(path, ignore_errors=True)
    for name, stored in wanted.items():
        copy, uri = folder / name, f"{uri_of(folder)}/{stored}"
        content = client.get_bytes(f"{uri}/{MANIFEST}", tell)
        path = copy / MANIFEST
        if content is None or (path.exists() and path.read_bytes() == content):
            continue
        shutil.rmtree(copy, ignore_errors=True)
        temporary = folder / f".{name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        client.get(f"{uri}/state.json", temporary / "state.json", tell)
        (temporary / MANIFEST).write_bytes(content)
        if stored != name:
            (temporary / STORED_AS).write_text(stored, encoding="utf-8")
        temporary.rename(copy)


def orphans(listing: Listing) -> Iterator[str]:
    """Files of checkpoints that were never finished, or whose removal was interrupted."""
    whole = {name.split("/")[0] for name in listing if name.endswith(f"/{MANIFEST}")}
    newest = max((name for name in whole if name.startswith(f"{BEST}-")), default=None)
    for name in listing:
        top = name.split("/")[0]
        if top not in whole or (top.startswith(f"{BEST}-") and top != newest):
            yield name


def fetch_checkpoints(folder: Path, tell: Tell = print_line) -> None:
    """Bring down the records of all checkpoints of a folder; nothing for an ordinary one."""
    if uri := uri_of(folder):
        listing = client.list_objects(uri, tell)
        restore_checkpoints(folder, listing, tell, is_training=True)
