"""The start of a job: copy the files that were sent with it to the run's folder, and run from there.

Each node has its own copy of a job's files, at a different path, and deletes it when the job has ended. The run's
folder is on storage that all nodes share, and remains.
"""

import os
import shutil
import sys
from pathlib import Path

from orchestrator.cluster.jobs.package import CONFIG_NAME
from orchestrator.config.load import load_config

INPUTS = "inputs"


def main() -> None:
    """Copy the current folder to `inputs/` of the run, and replace this process by `raymix VERB` there."""
    (verb,) = sys.argv[1:]
    inputs = load_config(Path(CONFIG_NAME)).folder / INPUTS
    shutil.copytree(Path.cwd(), inputs, dirs_exist_ok=True)
    os.chdir(inputs)
    os.execv(sys.executable, [sys.executable, "-m", "orchestrator.cli.main", verb, CONFIG_NAME])


if __name__ == "__main__":
    main()
