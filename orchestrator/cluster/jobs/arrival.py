"""The start of a job: the command of its entry point, raymix's code with the Python that runs the cluster, which copies
the files that were sent with it to the run's folder and runs from there.

Ray passes an entry point to a shell on the node, whose PATH does not include the environment of `ray start`: `python`
may be missing there, or be another one without Ray. The process that starts the shell, the job's supervisor, runs in
the right environment, and the path of the Ray library that it has loaded shows where that is.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.cluster.jobs.package import CONFIG_NAME
from orchestrator.config.load import load_config

# Environments that Ray creates for a job: it puts their `python` first on the job's PATH.
_MADE_BY_RAY = ("pip", "uv", "conda")
# /proc/PID/maps: `7f12 r-xp 0000 08:01 1234   /opt/venv/lib/python3.11/site-packages/ray/_raylet.so`. Without /proc, or
# if Ray is installed without a `bin` folder, the supervisor's executable is used, else the one on PATH.
_FIND_PYTHON = (
    r"P=$(sed -n 's|^[^/]*\(/.*\)/lib[0-9]*/python[^/]*/[a-z]*-packages/ray/_raylet\.so$|\1/bin/python|p' "
    '"/proc/$PPID/maps" 2>/dev/null | head -n 1); '
    '[ -x "$P" ] || P=$(readlink -f "/proc/$PPID/exe"); [ -x "$P" ] || P=python; '
)


def python_command(module: str, arguments: Sequence[str], runtime_env: Mapping[str, Any]) -> str:
    """A shell line that replaces the shell by `python -m MODULE ARGUMENTS...` in the job's runtime environment."""
    rest = shlex.join(["-m", module, *arguments])
    if given := runtime_env.get("py_executable"):
        return f"exec {given} {rest}"
    if any(runtime_env.get(kind) for kind in _MADE_BY_RAY):
        return f"exec python {rest}"
    return f'{_FIND_PYTHON}exec "$P" {rest}'


INPUTS = "inputs"


def main() -> None:
    """Copy the current folder to `inputs/` of the run, and replace this process by `raymix VERB` there.

    Each node has its own copy of a job's files, at a different path, and deletes it when the job has ended. The run's
    folder is on storage that all nodes share, and remains.
    """
    (verb,) = sys.argv[1:]
    inputs = load_config(Path(CONFIG_NAME)).folder / INPUTS
    shutil.copytree(Path.cwd(), inputs, dirs_exist_ok=True)
    os.chdir(inputs)
    os.execv(sys.executable, [sys.executable, "-m", "orchestrator.cli.main", verb, CONFIG_NAME])


if __name__ == "__main__":
    main()
