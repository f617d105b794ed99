"""The dashboard for run folders that only a cluster can see: a job on its head node serves them.

The job is `python -m orchestrator.dashboard.remote RUNS_DIR PORT DIGEST`. It listens on the head's 127.0.0.1 only; the
user reaches it through a tunnel. The token never leaves this machine: the job's entry point, which everyone with access
to the cluster can see, contains its digest.
"""

import asyncio
import re
import secrets
import signal
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from ray.job_submission import JobStatus, JobSubmissionClient
from rich.console import Console

from orchestrator.cluster.jobs.arrival import python_command
from orchestrator.cluster.jobs.client import (
    JobError,
    cluster_errors,
    connect,
    metadata,
    own_packages,
    printable_lines,
    wait_until_ended,
)
from orchestrator.dashboard.guard import choose_token, digest_of, opening
from orchestrator.dashboard.server import HOST, serve_with
from orchestrator.views.console import plain_errors

NAME = "(dashboard)"  # not a valid name of a run
LISTENS = re.compile(rf"http://{re.escape(HOST)}:(\d+)/\s*")


def entrypoint(runs_dir: Path, port: int, token: str) -> str:
    """The job's command line, which everyone with access to the cluster can see."""
    return python_command("orchestrator.dashboard.remote", [str(runs_dir), str(port), digest_of(token)], {})


def directions(port: int, address: str, token: str, is_own: bool) -> list[str]:
    """How to open the page. The server only answers to its own port, so the port is the same on both sides."""
    host = urlsplit(address).hostname
    head = "HEAD" if host in (None, "localhost", HOST, "::1") else host
    link, note = opening(f"http://{HOST}:{port}/", token, is_own)
    return [f"ssh -N -L {port}:{HOST}:{port} {head}", f"or: kubectl port-forward pod/HEAD_POD {port}", link, note]


def serve_on_cluster(runs_dir: Path, port: int, address: str, console: Console) -> None:
    """Serve a folder of the cluster on its head node until Ctrl-C or SIGTERM, and print how to reach it.

    ValueError if the path is not absolute or the token provided is too short; JobError if the cluster cannot be reached
    or rejects the token, or the server failed.
    """
    if not runs_dir.is_absolute():
        raise ValueError(f"{runs_dir} is relative; with --address, give the absolute path of the folder on the cluster")
    token, is_own = choose_token()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with cluster_errors(address):
        client = connect(address)
        job = client.submit_job(
            entrypoint=entrypoint(runs_dir, port, token),
            submission_id=f"dashboard-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}",
            runtime_env={"py_modules": own_packages(), "env_vars": {"PYTHONUNBUFFERED": "1"}},
            metadata=metadata(NAME, runs_dir),
        )
        _say(console, f"{job} runs on the head node of {address}")
        try:
            asyncio.run(_follow(client, job, address, token, is_own, console))
            ended = wait_until_ended(client, job)
        except KeyboardInterrupt:
            client.stop_job(job)
            ended = wait_until_ended(client, job)
    if ended is JobStatus.FAILED:
        raise JobError(f"{job}: failed; its log is above")
    _say(console, f"{job}: {ended.value.lower()}")


async def _follow(
    client: JobSubmissionClient, job: str, address: str, token: str, is_own: bool, console: Console
) -> None:
    """Print directions once the server listens, then its output. If it never listens, print all its output."""
    rest, before, listens = "", "", False
    async for text in client.tail_job_logs(job):
        *lines, rest = f"{rest}{text}".split("\n")
        for line in lines:
            if told := LISTENS.fullmatch(line):
                listens = True
                for direction in directions(int(told[1]), address, token, is_own):
                    _say(console, direction)
            elif listens:
                _say(console, printable_lines(line))
            else:
                before += f"{line}\n"
    if left := rest if listens else before + rest:
        _say(console, printable_lines(left.rstrip("\n")))


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    root, port, digest = sys.argv[1:]
    with plain_errors():
        serve_with(Path(root), int(port), digest, print)
