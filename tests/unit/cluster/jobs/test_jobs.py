"""The verbs for jobs, with a stand-in for Ray's client that keeps jobs in a list; the real one is in integration."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray.dashboard.modules.job.pydantic_models import JobDetails, JobType
from ray.job_submission import JobStatus
from rich.console import Console

from orchestrator.cli.main import app
from orchestrator.cluster.jobs import client
from orchestrator.cluster.jobs.client import JobError
from orchestrator.dashboard import remote
from tests.runs import write_run

ADDRESS = "http://head:8265"
NOW_MS = int(time.time() * 1000)


def job(name: str, run: str | None, status: JobStatus = JobStatus.SUCCEEDED, begun_s: float = 100) -> JobDetails:
    """A job that began this long ago and took a minute."""
    start = int(NOW_MS - 1000 * begun_s)
    return JobDetails(
        type=JobType.SUBMISSION,
        submission_id=name,
        entrypoint="python",
        status=status,
        start_time=start,
        end_time=start + 60_000 if status.is_terminal() else None,
        metadata={"raymix": run, "folder": f"/runs/{run}"} if run else {"owner": "somebody"},
    )


@dataclass
class Jobs:
    """Ray's client, as far as raymix calls it."""

    jobs: list[JobDetails]
    log: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    sent: dict[str, Any] = field(default_factory=dict)
    interrupts: bool = False

    def list_jobs(self) -> list[JobDetails]:
        return self.jobs

    def get_job_logs(self, name: str) -> str:
        return "".join(self.log)

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        for text in self.log:
            yield text
        if self.interrupts:
            raise KeyboardInterrupt

    def get_job_status(self, name: str) -> JobStatus:
        if name in self.stopped:
            return JobStatus.STOPPED
        return next(each.status for each in self.jobs if each.submission_id == name)

    def stop_job(self, name: str) -> bool:
        self.stopped.append(name)
        return True

    def submit_job(self, submission_id: str, **sent: Any) -> str:
        self.sent = sent
        self.jobs.append(job(submission_id, "sent"))
        return submission_id


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    there = Jobs(
        [
            job("tuned-1", "tuned", JobStatus.FAILED, begun_s=300),
            job("tuned-2", "tuned", JobStatus.RUNNING, begun_s=200),
            job("law-1", "law", begun_s=100),
            job("another's", None),
        ],
        log=["step 1/2\n", "\x1b[31mstep\t2/2\n"],
    )
    monkeypatch.setattr(client, "JobSubmissionClient", lambda address: there)
    monkeypatch.setattr(client, "_LOOK_EVERY_SECONDS", 0.0)
    return there


def raymix(*words: str | Path) -> None:
    app([*map(str, words), "--address", ADDRESS], standalone_mode=False)


def test_status_lists_our_jobs_newest_first(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    raymix("status")
    _, *lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines]
    assert [row[:2] for row in rows] == [["law-1", "succeeded"], ["tuned-2", "running"], ["tuned-1", "failed"]]
    assert "/runs/law" in rows[0]
    raymix("status", "tuned")
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["tuned-2"]


def test_a_log_has_no_control_sequences_and_the_name_of_a_run_means_its_newest_job(
    jobs: Jobs, capsys: pytest.CaptureFixture[str]
) -> None:
    raymix("logs", "law")
    once = capsys.readouterr().out
    assert "step 1/2\n" in once and "\x1b" not in once
    raymix("logs", "law", "--follow")
    assert capsys.readouterr().out == once
    raymix("logs", "-f", "tuned-1")
    assert capsys.readouterr().err == "raymix: tuned-1: failed\n"


def test_an_unknown_job_is_told_with_the_newest_ones(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    raymix("logs", "nobody")
    told = "raymix: no job or run 'nobody' on this cluster; the newest jobs are: law-1, tuned-2, tuned-1\n"
    assert capsys.readouterr().err == told


def test_stop_waits_until_the_job_has_ended(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    raymix("stop", "tuned")
    assert jobs.stopped == ["tuned-2"]
    told = capsys.readouterr().out.splitlines()
    assert told == ["tuned-2: ends after the current step, with a checkpoint", "tuned: stopped"]


def test_ctrl_c_leaves_the_job_running_and_says_so(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.interrupts = True
    raymix("logs", "-f", "tuned-2")
    assert capsys.readouterr().out.endswith("tuned-2 keeps running; to stop it: raymix stop tuned-2\n")
    assert not jobs.stopped


def test_submit_sends_the_verb_and_waits(jobs: Jobs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_run(tmp_path, cluster__runtime_env={"env_vars": {"HF_HOME": "/hub"}})
    raymix("submit", config, "--verb", "compare")
    (name,) = (each.submission_id for each in jobs.jobs if each.submission_id.startswith("small-"))
    assert capsys.readouterr().out.endswith(f"submitted {name}\nraymix logs -f {name}\n")
    assert jobs.sent["entrypoint"].endswith("orchestrator.cluster.jobs.arrival compare")
    assert jobs.sent["metadata"] == {"raymix": "small", "folder": str(tmp_path / "runs" / "small")}
    environment = jobs.sent["runtime_env"]["env_vars"]
    assert environment["HF_HOME"] == "/hub" and environment["RAY_JOB_STOP_WAIT_TIME_S"] == "900"
    raymix("submit", config, "--wait")
    assert "step 1/2\n" in capsys.readouterr().out


def serve() -> str:
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        remote.serve_on_cluster(Path("/runs"), 8275, ADDRESS, console)
    return capture.get()


def test_directions_come_once_the_server_listens_and_ctrl_c_stops_it(jobs: Jobs) -> None:
    jobs.log = ["starting\nhttp://127.0.0.1:8275/\n", "a line\n", "and the re", "st"]
    jobs.interrupts = True
    said = serve().splitlines()
    (name,) = jobs.stopped
    assert said[0] == f"{name} runs on the head node of {ADDRESS}" and said[-1] == f"{name}: stopped"
    assert said[1] == "ssh -N -L 8275:127.0.0.1:8275 head"
    assert "starting" not in said and said[5] == "a line"
    token = said[3].split("token=")[1]
    assert token and token not in jobs.sent["entrypoint"]


def test_a_server_that_never_listens_is_shown_with_all_it_said(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.log = ["no such folder\n", "ended"]
    monkeypatch.setattr(jobs, "get_job_status", lambda name: JobStatus.FAILED)
    with pytest.raises(JobError, match="failed; its log is above"):
        serve()
    with pytest.raises(ValueError, match="runs is relative; with --address, give the absolute path"):
        remote.serve_on_cluster(Path("runs"), 8275, ADDRESS, Console())
