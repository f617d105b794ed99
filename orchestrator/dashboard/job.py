"""What `raymix dashboard --address` runs on the head node: the server, which only knows the digest of its token.

    python -m orchestrator.dashboard.job RUNS_DIR PORT DIGEST

remote.py submits it to the cluster.
"""

import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.cluster.jobs.arrival import python_command
from orchestrator.dashboard.guard import digest_of, opening
from orchestrator.dashboard.server import HOST, serve_with
from orchestrator.views.errors import plain_errors

LISTENS = re.compile(rf"http://{re.escape(HOST)}:(\d+)/\s*")


def entrypoint(runs_dir: Path, port: int, token: str) -> str:
    """The job's command line, which everyone with access to the cluster can see."""
    return python_command("orchestrator.dashboard.job", [str(runs_dir), str(port), digest_of(token)], {})


def directions(port: int, address: str, token: str, is_own: bool) -> list[str]:
    """How to open the page. The server only answers to its own port, so the port is the same on both sides."""
    host = urlsplit(address).hostname
    head = "HEAD" if host in (None, "localhost", HOST, "::1") else host
    link, note = opening(f"http://{HOST}:{port}/", token, is_own)
    return [f"ssh -N -L {port}:{HOST}:{port} {head}", f"or: kubectl port-forward pod/HEAD_POD {port}", link, note]


def main() -> None:
    root, port, digest = sys.argv[1:]
    with plain_errors():
        serve_with(Path(root), int(port), digest, print)


if __name__ == "__main__":
    main()
