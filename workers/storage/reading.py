"""Runs of object storage for one who only looks: copies of their small files on this node, kept like the storage."""

import os
from pathlib import Path

from workers.storage import client
from workers.storage.addresses import uri_of
from workers.storage.client import Tell, print_line
from workers.storage.run_copy import DRIVER_LOCK, is_held, is_small, small_files
from workers.storage.stores import ObjectInfo

_CONFIG_FILE = "config.json"
_NO_RUNS_INSIDE = {"model", "best", "checkpoints", "token-stores"}


class StoredRuns:
    """All runs below a folder of object storage."""

    def __init__(self, folder: Path, tell: Tell = print_line) -> None:
        """`folder` is this node's copy of it."""
        self._folder = folder
        self._tell = tell
        self._versions: dict[str, str] = {}

    def refresh(self) -> None:
        """Bring down what has changed since the last call, with the storage's times; copies that a driver on this node
        keeps stay as they are."""
        listing = client.list_objects(f"{uri_of(self._folder)}", self._tell)
        files_of: dict[str, dict[str, ObjectInfo]] = {run: {} for run in _runs(listing)}
        for name, info in listing.items():
            for run in _folders_of(name):
                if run in files_of:
                    files_of[run][name.removeprefix(f"{run}/")] = info
        for run, files in files_of.items():
            if not is_held(self._folder / run / DRIVER_LOCK):
                self._refresh_run(run, {name: info for name, info in files.items() if is_small(name)})

    def _refresh_run(self, run: str, files: dict[str, ObjectInfo]) -> None:
        place = self._folder / run
        new = [name for name, info in files.items() if self._versions.get(f"{run}/{name}") != info.version]
        client.side_by_side(lambda name: client.get(f"{uri_of(place)}/{name}", place / name, self._tell), new)
        for name in new:
            self._versions[f"{run}/{name}"] = files[name].version
            if (place / name).exists():  # else it was removed meanwhile
                os.utime(place / name, (files[name].modified_at, files[name].modified_at))
        for path in small_files(place):
            if path.relative_to(place).as_posix() not in files:
                path.unlink()


def _runs(listing: dict[str, ObjectInfo]) -> list[str]:
    found = (name.removesuffix(f"/{_CONFIG_FILE}") for name in listing if name.endswith(f"/{_CONFIG_FILE}"))
    return [run for run in found if not _NO_RUNS_INSIDE.intersection(run.split("/"))]


def _folders_of(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]
