"""The dashboard as a user starts it, and what a program may ask of it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tests.runs import ROOT


class Server:
    """`raymix dashboard` over the runs below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        environment = {key: value for key, value in os.environ.items() if key != "RAYMIX_DASHBOARD_TOKEN"}
        command = [sys.executable, "-m", "orchestrator.cli.main", "dashboard", str(root), "--port", "0"]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = next(line.strip() for line in self.process.stdout if line.startswith("http"))
        self.base, self.token = self.url.split("/#token=")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)


def ask(address: str, body: dict[str, Any] | None = None, token: str | None = None, **headers: str) -> int:
    """The status of a GET, or of a POST where there is a body."""
    data = None if body is None else json.dumps(body).encode()
    headers |= {"Content-Type": "application/json"} | ({} if token is None else {"Authorization": f"Bearer {token}"})
    try:
        return int(urlopen(Request(address, data, headers)).status)
    except HTTPError as error:
        return error.code
