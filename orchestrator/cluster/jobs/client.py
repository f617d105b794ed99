"""Submit a run, show its status, follow its log, stop it: Ray's Jobs API, with errors that say what to do."""

import asyncio
import logging
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from aiohttp import ClientError
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.job_submission import JobStatus, JobSubmissionClient
from requests import RequestException  # a dependency of Ray's job client
from rich.console import Console
from rich.table import Table
from rich.text import Text

import orchestrator
import workers
from orchestrator.cluster.jobs.arrival import python_command
from orchestrator.cluster.jobs.package import write_package
from orchestrator.config.sweep import SweepConfig
from orchestrator.runs.folder import read_summary
from orchestrator.views.format import NOTHING, format_duration, printable
from orchestrator.views.summary import HARMFUL, in_a_word

_STOP_WAIT_SECONDS = 900  # for the current step and a checkpoint; after that, Ray kills the job
_LOOK_EVERY_SECONDS = 1.0
_CHATTY = ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging")
_RAYMIX = "raymix"  # metadata key that marks our jobs


class JobError(RuntimeError):
    """The cluster rejected a call, or a job failed."""


def submit(config: SweepConfig, address: str | None, verb: str, console: Console) -> str:
    """Submit a verb with a configuration to a cluster; returns the job's id.

    The files of a folder that are not sent are listed on the console.

    Raises:
        ConfigError, ValueError: `write_package` cannot pack what the job needs.
        JobError: the cluster cannot be reached, needs another token, or rejects the job.
    """
    with tempfile.TemporaryDirectory(prefix="raymix-job-") as folder, cluster_errors(address):
        for note in write_package(config, Path(folder)):
            console.print(note, markup=False, highlight=False, soft_wrap=True)
        runtime_env = dict(config.cluster.runtime_env)
        runtime_env["env_vars"] = {
            "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_SECONDS),
            "PYTHONUNBUFFERED": "1",
            **runtime_env.get("env_vars", {}),
        }
        return connect(address).submit_job(
            entrypoint=python_command("orchestrator.cluster.jobs.arrival", [verb], runtime_env),
            submission_id=f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}",
            runtime_env=runtime_env | {"working_dir": folder, "py_modules": own_packages()},
            metadata=metadata(config.name, config.folder),
        )


def own_packages() -> list[str]:
    """The code that is sent with every job: raymix as installed here."""
    return [str(Path(module.__path__[0])) for module in (orchestrator, workers)]


def metadata(name: str, folder: Path) -> dict[str, str]:
    return {_RAYMIX: name, "folder": str(folder)}


def follow(job: str, address: str | None, console: Console) -> JobStatus:
    """Print a job's log as it grows, until the job ends; returns how it ended."""
    with cluster_errors(address):
        client = connect(address)
        job = _find(client, job)
        asyncio.run(_print_log(client, job, console))
        return wait_until_ended(client, job)


def read_log(job: str, address: str | None) -> str:
    with cluster_errors(address):
        client = connect(address)
        return client.get_job_logs(_find(client, job))


def stop(job: str, address: str | None, console: Console) -> JobStatus:
    """Ask a job to end with a checkpoint, and wait until it has."""
    with cluster_errors(address):
        client = connect(address)
        job = _find(client, job)
        if client.stop_job(job):
            console.print(f"{job}: ends after the current step, with a checkpoint", markup=False, highlight=False)
        return wait_until_ended(client, job)


def jobs_view(address: str | None, job: str | None = None) -> Table:
    """The cluster's runs, or one of them, newest first."""
    with cluster_errors(address):
        client = connect(address)
        chosen = None if job is None else _find(client, job)
        found = [details for details in _ours(client) if chosen in (None, details.submission_id)]
    table = Table(box=None, header_style="dim", pad_edge=False)
    for heading in ("job", "state", "time", "folder"):
        table.add_column(heading, overflow="fold")
    for details in found:
        style = {"SUCCEEDED": "green", "FAILED": "red", "RUNNING": "cyan"}.get(details.status.value, "")
        folder = (details.metadata or {}).get("folder")
        state = Text.assemble((details.status.value.lower(), style), (_harm(folder), "bold red"))
        table.add_row(details.submission_id, state, _time(details), printable(folder))
    return table


def _harm(folder: str | None) -> str:
    """A finished run's verdict if it is harmful, and if the run's folder is accessible from here."""
    if folder is None:
        return ""
    summary = read_summary(Path(folder))
    return f", {in_a_word(summary.verdict)}" if summary and summary.verdict in HARMFUL else ""


def connect(address: str | None) -> JobSubmissionClient:
    """A client, for use within `cluster_errors`, without the log lines that Ray prints about packages."""
    client = JobSubmissionClient(address)
    for name in _CHATTY:
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
    return client


async def _print_log(client: JobSubmissionClient, job: str, console: Console) -> None:
    async for text in client.tail_job_logs(job):
        console.print(Text(printable_lines(text)), end="", soft_wrap=True)


def printable_lines(text: str) -> str:
    """A piece of a log without terminal control sequences."""
    return "\n".join(printable(line) for line in text.expandtabs(4).split("\n"))


def wait_until_ended(client: JobSubmissionClient, job: str) -> JobStatus:
    while not (status := client.get_job_status(job)).is_terminal():
        time.sleep(_LOOK_EVERY_SECONDS)
    return status


def _find(client: JobSubmissionClient, job: str) -> str:
    """A job's id, given that id or the name of a run, whose newest job is meant."""
    found = _ours(client)
    for details in found:
        if job in (details.submission_id, (details.metadata or {})[_RAYMIX]):
            return str(details.submission_id)
    known = ", ".join(str(details.submission_id) for details in found[:5]) or "none"
    raise JobError(f"no job or run {job!r} on this cluster; the newest jobs are: {known}")


def _ours(client: JobSubmissionClient) -> list[JobDetails]:
    jobs = [details for details in client.list_jobs() if _RAYMIX in (details.metadata or {})]
    return sorted(jobs, key=lambda details: details.start_time or 0, reverse=True)


def _time(details: JobDetails) -> str:
    if not details.start_time:
        return NOTHING
    return format_duration((details.end_time or time.time() * 1000) / 1000 - details.start_time / 1000)


@contextmanager
def cluster_errors(address: str | None) -> Iterator[None]:
    """Turn Ray's errors about a cluster into a JobError that says what to do."""
    where = address or "the cluster"
    try:
        yield
    except ray.exceptions.AuthenticationError as error:
        fault = "the token is wrong" if "invalid" in str(error).lower() else "a token is required"
        raise JobError(
            f"{where}: {fault}; set RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN or its file in "
            "RAY_AUTH_TOKEN_PATH"
        ) from error
    # Ray's error, and those that its client passes on: of requests for a call, of aiohttp for a log. OSError would be
    # wrong: it includes errors of files written here, but not a server that disconnects.
    except (ConnectionError, RequestException, ClientError) as error:
        raise JobError(
            f"{where}: no Ray dashboard answers there; give --address http://HEAD:8265 of a running cluster"
        ) from error
    except RuntimeError as error:
        if isinstance(error, JobError):
            raise
        first, *_ = str(error).strip().splitlines() or [type(error).__name__]
        raise JobError(f"{where}: {first}") from error
