"""A real S3 server on this machine that a test can kill and start again: SeaweedFS, with its data in a folder."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.raylets import free_port

KEY, SECRET, BUCKET = "the-key", "the-secret", "team"
_ONLY_READS = ("reader", "the-other-secret")
_UP_WITHIN_SECONDS = 60
_PARTS = ("master", "volume", "filer", "s3")


class ObjectServer:
    """One that runs until it is killed; what it answered to have stored survives that."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._port = free_port()
        self._others = [free_port() for _ in range(7)]
        everything = ["Admin", "Read", "Write", "List", "Tagging"]
        identities = [
            {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
            for name, key, secret, actions in (
                ("all", KEY, SECRET, everything),
                ("one", *_ONLY_READS, [f"{action}:{BUCKET}" for action in ("Read", "List")]),
            )
        ]
        (folder / "identities.json").write_text(json.dumps({"identities": identities}))
        self.start()

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which raymix finds it."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_REGION": "us-east-1",
        }

    @property
    def reader(self) -> dict[str, str]:
        """The variables of somebody who must not write."""
        key, secret = _ONLY_READS
        return self.environment | {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}

    def start(self) -> None:
        master, volume, filer, *grpc = self._others
        command = [
            Path(sys.executable).parent / "weed", "server", f"-dir={self.folder}", "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1", f"-master.port={master}", "-master.electionTimeout=500ms",
            "-master.heartbeatInterval=100ms", "-master.volumeSizeLimitMB=256", f"-volume.port={volume}",
            "-volume.max=8", "-volume.preStopSeconds=0", "-filer", f"-filer.port={filer}", "-s3",
            f"-s3.port={self._port}", "-s3.port.iceberg=0", "-s3.port.lance=0",
            f"-s3.config={self.folder / 'identities.json'}",
            *(f"-{part}.port.grpc={port}" for part, port in zip(_PARTS, grpc, strict=True)),
        ]  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=self.folder
            )
        until = time.monotonic() + _UP_WITHIN_SECONDS
        while not self._stores():
            assert self._process.poll() is None and time.monotonic() < until, (self.folder / "server.log").read_text()[
                -2000:
            ]
            time.sleep(0.1)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        for port in (self._port, *self._others):
            for left in Path("/tmp").glob(f"seaweedfs-*{port}.sock"):
                left.unlink(missing_ok=True)

    def _stores(self) -> bool:
        """Whether it takes an object, which it does some seconds after it listens."""
        from obstore.exceptions import BaseError
        from obstore.store import S3Store

        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
            store = S3Store(
                BUCKET,
                endpoint=self.environment["AWS_ENDPOINT_URL"],
                access_key_id=KEY,
                secret_access_key=SECRET,
                region="us-east-1",
                client_options={"allow_http": True, "timeout": "2s"},
                retry_config={"max_retries": 0},
            )
            with contextlib.suppress(BaseError):
                store.put("ready", b"")
                return True
        return False


@contextlib.contextmanager
def serving(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """A server that this process and those that it starts reach, with their copies in `cache`."""
    server = ObjectServer(folder)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAYMIX_CACHE", str(cache))
    with contextlib.closing(server):
        yield server
