"""A run that goes on: writes a run's files step by step as training does, holding its folder as a driver does.

    python -m tests.integration.growing_run FOLDER NUM_BEFORE TOTAL_STEPS

After the first steps it waits for a file `go` in its folder.
"""

import sys
import time
from pathlib import Path

from filelock import FileLock

from tests.unit.conftest import FakeRun

DOMAINS = ("math", "code", "law", "medicine", "general")


SECONDS_PER_STEP = 0.2


def grow(folder: Path, num_before: int, total_steps: int) -> None:
    """The first steps at once, the others one after the other, then the summary."""
    run = FakeRun(folder, DOMAINS, total_steps, every=10, seed=0)
    with FileLock(folder / ".driver.lock"):
        run.append("events.jsonl", {"step": 0, "kind": "attempt", "message": "attempt 1 starts from the base model"})
        run.write_start()
        run.write_steps(1, num_before)
        while not (folder / "go").exists():
            time.sleep(0.1)
        for step in range(num_before + 1, total_steps + 1):
            time.sleep(SECONDS_PER_STEP)
            run.write_steps(step, step)
        run.write_summary()


if __name__ == "__main__":
    grow(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
