"""The command of a job's entry point: raymix's code under the Python that runs the cluster.

Ray hands an entry point to a shell of the node, whose PATH knows nothing of the environment that `ray start` came
from: `python` there may be another one, without Ray, or none at all. The process that starts the shell, the job's
supervisor, runs in the right one, and the file of Ray that it has loaded says where that is.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

# Environments that Ray makes for a job: it puts their `python` first on the job's PATH.
_MADE_BY_RAY = ("pip", "uv", "conda")
# /proc/PID/maps: `7f12 r-xp 0000 08:01 1234   /opt/venv/lib/python3.11/site-packages/ray/_raylet.so`. Without /proc, or
# with Ray in a place that has no `bin`, the supervisor's own program, else what PATH has.
_FIND_PYTHON = (
    r"P=$(sed -n 's|^[^/]*\(/.*\)/lib[0-9]*/python[^/]*/[a-z]*-packages/ray/_raylet\.so$|\1/bin/python|p' "
    '"/proc/$PPID/maps" 2>/dev/null | head -n 1); '
    '[ -x "$P" ] || P=$(readlink -f "/proc/$PPID/exe"); [ -x "$P" ] || P=python; '
)


def python_command(module: str, arguments: Sequence[str], runtime_env: Mapping[str, Any]) -> str:
    """A line for the shell that runs `python -m MODULE ARGUMENTS...` in place of the shell.

    Args:
        module: of raymix.
        arguments: each taken as it is.
        runtime_env: the job's, as Ray takes it.
    """
    rest = shlex.join(["-m", module, *arguments])
    if given := runtime_env.get("py_executable"):
        return f"exec {given} {rest}"
    if any(runtime_env.get(kind) for kind in _MADE_BY_RAY):
        return f"exec python {rest}"
    return f'{_FIND_PYTHON}exec "$P" {rest}'
