"""Start-up: the CPU seconds that a verb takes before it does anything, the least of several calls.

    python benchmarks/startup.py [--tree FOLDER] [--rounds N]

FOLDER is another checkout, to compare with: both are measured by their own `raymix` on the same finished run, which is
trained first, in about a minute. CPU seconds (user and system) of a process and of those that it waited for; other
work on the machine disturbs them less than wall time, and the minimum is what the code itself takes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.runs import write_run  # noqa: E402

_REFUSED = 2  # exit code for a configuration with faults


def environment(tree: Path) -> dict[str, str]:
    """Processes import from this tree, wherever they are started."""
    return os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def cli_of(tree: Path) -> list[str]:
    """How `raymix` is started from a tree, without an installation of it."""
    scripts = tomllib.loads((tree / "pyproject.toml").read_text())["project"]["scripts"]
    return ["-m", scripts["raymix"].partition(":")[0]]


def cpu_seconds(tree: Path, arguments: list[str], folder: Path) -> tuple[float, int]:
    """CPU seconds and exit code of one Python process."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(tree),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_utime + used.ru_stime, process.returncode


def calls(tree: Path, folder: Path) -> dict[str, tuple[list[str], int]]:
    """What is measured: arguments of Python, and the exit code that is right."""
    raymix, config, run = cli_of(tree), str(folder / "config.yaml"), str(folder / "runs" / "small")
    typo = ["--set", "training.learning_rat=0.1"]
    return {
        "python -c pass": (["-c", "pass"], 0),
        "raymix --help": ([*raymix, "--help"], 0),
        "raymix -h": ([*raymix, "-h"], 0),
        "raymix --version": ([*raymix, "--version"], 0),
        "raymix run --help": ([*raymix, "run", "--help"], 0),
        "raymix run, refused": ([*raymix, "run", config, *typo], _REFUSED),
        "raymix check, refused": ([*raymix, "check", config, *typo], _REFUSED),
        "raymix run, finished": ([*raymix, "run", config], 0),
        "raymix weights RUN show": ([*raymix, "weights", run, "show"], 0),
        "import orchestrator.training.driver": (["-c", "import orchestrator.training.driver"], 0),
    }


def main() -> None:
    """Train the run, measure, and print a line for each call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, help="another checkout, to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    trees = [ROOT] if given.tree is None else [given.tree.resolve(), ROOT]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = write_run(folder, training__max_steps=2, training__checkpoint_every=2, cluster__num_workers=1)
        subprocess.run(
            [sys.executable, *cli_of(ROOT), "run", str(config)], cwd=folder, env=environment(ROOT), check=True
        )
        least: dict[str, list[float | None]] = {}
        for _ in range(given.rounds):
            for column, tree in enumerate(trees):
                for name, (arguments, right) in calls(tree, folder).items():
                    seconds, code = cpu_seconds(tree, arguments, folder)
                    found = least.setdefault(name, [None] * len(trees))
                    if code == right:  # an older tree may not know the call
                        found[column] = min(seconds, found[column] or seconds)
    for name, found in least.items():
        print(f"{name:<38}" + "".join(f"{'-' if s is None else f'{s:.2f} s':>10}" for s in found))


if __name__ == "__main__":
    main()
