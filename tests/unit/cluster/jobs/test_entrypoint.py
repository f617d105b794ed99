"""A job's entry point takes the Python of the process that starts its shell, as Ray's supervisor does, not PATH's."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from orchestrator.cluster.jobs.arrival import python_command

SUPERVISOR = """
import subprocess, sys
import ray._raylet  # which every process of a cluster has loaded
print(subprocess.run(sys.argv[1], shell=True, capture_output=True, text=True).stdout, end="")
"""
WHERE = "import sys; print(sys.executable); print(sys.prefix); print(sys.argv[1:])"


@pytest.fixture
def decoys(tmp_path: Path) -> str:
    """A PATH whose `python` is another one."""
    folder = tmp_path / "decoys"
    folder.mkdir()
    for name in ("python", "python3"):
        (folder / name).write_text("#!/bin/sh\necho decoy\n")
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin"


def supervise(command: str, path: str, module: Path, python: str = sys.executable) -> list[str]:
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(module)}
    done = subprocess.run(
        [python, "-c", SUPERVISOR, command], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.fixture
def module(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "told.py").write_text(WHERE)
    return folder


def test_it_is_the_supervisor_s_own(tmp_path: Path, decoys: str, module: Path) -> None:
    _, prefix, arguments = supervise(python_command("told", ["run", "a b", "$HOME"], {}), decoys, module)
    assert Path(prefix).samefile(sys.prefix)
    assert arguments == "['run', 'a b', '$HOME']"


def test_an_environment_that_was_never_activated_in_a_folder_with_a_space(
    tmp_path: Path, decoys: str, module: Path
) -> None:
    place = tmp_path / "my environment"
    venv.create(place, symlinks=True, with_pip=False)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "ray").mkdir()
    import _struct

    # Any compiled module does for what is looked for: the name of a loaded file.
    shutil.copy(_struct.__file__, packages / "ray" / "_raylet.so")
    load = SUPERVISOR.replace(
        "import ray._raylet", f"import ctypes; ctypes.CDLL({str(packages / 'ray' / '_raylet.so')!r})"
    )
    done = subprocess.run(
        [place / "bin" / "python", "-c", load, python_command("told", [], {})],
        env={"PATH": decoys, "PYTHONPATH": str(module)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[0] == str(place / "bin" / "python")


@pytest.mark.parametrize(
    ("runtime_env", "start"),
    [
        ({"pip": ["x"]}, "exec python -m told run"),
        ({"uv": ["x"]}, "exec python -m told run"),
        ({"conda": "name"}, "exec python -m told run"),
        ({"py_executable": "/opt/x/bin/python -X dev"}, "exec /opt/x/bin/python -X dev -m told run"),
    ],
)
def test_an_environment_that_ray_makes_is_on_the_job_s_path(runtime_env: dict[str, object], start: str) -> None:
    assert python_command("told", ["run"], runtime_env) == start
