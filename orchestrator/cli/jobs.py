"""The verbs for runs on a cluster: submit, status, logs, stop."""

from typing import Annotated, Literal

import typer
from rich.console import Console

from orchestrator.cli.arguments import ConfigFile, Overrides, read_config

Address = Annotated[
    str | None,
    typer.Option(
        envvar="RAY_API_SERVER_ADDRESS",
        help="The cluster's dashboard, e.g. http://HEAD:8265; default: a local cluster.",
    ),
]
Job = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job, or name of a run for its newest job.")]


def submit(
    config: ConfigFile,
    overrides: Overrides,
    address: Address = None,
    verb: Annotated[
        Literal["run", "tune", "compare", "study", "coarse-search"], typer.Option(help="Verb to run there with CONFIG.")
    ] = "run",
    wait: Annotated[bool, typer.Option("--wait", help="Print the log until the job ends.")] = False,
) -> None:
    """Train or search on a cluster; files with relative paths are uploaded. Submit again to resume."""
    settings = read_config(config, overrides, check_files=False)
    from orchestrator.cluster.jobs.client import submit as submit_job

    console = Console()
    job = submit_job(settings, address, verb, console)
    console.print(f"submitted {job}", markup=False, highlight=False)
    if wait:
        _follow(job, address, console)
    else:
        console.print(f"raymix logs -f {job}", markup=False, highlight=False)


def status(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Id of a job, or name of a run.")] = None,
    address: Address = None,
) -> None:
    """List the cluster's jobs, newest first."""
    from orchestrator.cluster.jobs.client import jobs_view

    Console().print(jobs_view(address, job))


def logs(
    job: Job,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the job ends.")] = False,
) -> None:
    """Print the output of a job on the cluster."""
    from orchestrator.cluster.jobs.client import printable_lines, read_log

    if follow:
        _follow(job, address, Console())
    else:
        print(printable_lines(read_log(job, address)), end="")


def stop(job: Job, address: Address = None) -> None:
    """Stop a job on the cluster after its current step, with a checkpoint. Submit again to resume."""
    from orchestrator.cluster.jobs.client import stop as stop_job

    ended = stop_job(job, address, Console())
    Console().print(f"{job}: {ended.value.lower()}", markup=False, highlight=False)


def _follow(job: str, address: str | None, console: Console) -> None:
    from orchestrator.cluster.jobs.client import JobError, follow

    try:
        ended = follow(job, address, console)
    except KeyboardInterrupt:
        console.print(f"{job} keeps running; to stop it: raymix stop {job}", markup=False, highlight=False)
        return
    if ended.value != "SUCCEEDED":
        raise JobError(f"{job}: {ended.value.lower()}")
