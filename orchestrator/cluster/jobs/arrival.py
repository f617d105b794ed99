"""What a job does first: lay the files that travelled with it into the run's folder, and run from there.

Each node keeps its own copy of what a job brings, under a path of its own, and drops it when the job has ended. The
run's folder is on storage that all nodes share and stays.
"""

import os
import shutil
import sys
from pathlib import Path

from orchestrator.cluster.jobs.package import CONFIG_NAME
from orchestrator.config.load import load_config

INPUTS = "inputs"


def main() -> None:
    """Copy the current folder to `inputs/` of the run, and become `raymix VERB` there."""
    (verb,) = sys.argv[1:]
    inputs = load_config(Path(CONFIG_NAME)).folder / INPUTS
    shutil.copytree(Path.cwd(), inputs, dirs_exist_ok=True)
    os.chdir(inputs)
    os.execv(sys.executable, [sys.executable, "-m", "orchestrator.cli.main", verb, CONFIG_NAME])


if __name__ == "__main__":
    main()
