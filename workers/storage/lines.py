"""Files to which lines are appended: published whole, again and again, as object storage cannot append.

At most a twentieth of the time goes into it, so that a file is published less often the longer it is. What must not be
lost is published with each checkpoint, before the checkpoint counts.
"""

import threading
import time
from collections.abc import Mapping
from pathlib import Path

from workers.storage import client
from workers.storage.addresses import uri_of
from workers.storage.client import StorageError, Tell, print_line

EVERY_SECONDS = 5.0
_REST = 19  # times as long as publishing took


class LinePublisher:
    """Publishes files of a folder that have changed, from a thread, until it is closed; nothing for an ordinary folder.

    Args:
        names: name of each file -> name of its object.
    """

    def __init__(self, folder: Path, names: Mapping[str, str], tell: Tell = print_line) -> None:
        self._folder, self._names, self._tell = folder, dict(names), tell
        self._published: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="lines", daemon=True)
        if uri_of(folder):
            self._thread.start()

    def publish(self) -> None:
        """Publish now what has changed; StorageError if it cannot be."""
        uri = uri_of(self._folder)
        if uri is None:
            return
        with self._lock:
            for name, object_name in self._names.items():
                path = self._folder / name
                if path.exists() and (mark := _mark(path)) != self._published.get(name):
                    client.put(f"{uri}/{object_name}", path, self._tell)
                    self._published[name] = mark

    def close(self) -> None:
        """Publish what is left, and end."""
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join()
        self.publish()

    def _work(self) -> None:
        pause = EVERY_SECONDS
        while not self._is_over.wait(pause):
            began = time.monotonic()
            try:
                self.publish()
            except StorageError as error:
                self._tell(str(error))
            pause = max(EVERY_SECONDS, _REST * (time.monotonic() - began))


def _mark(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
