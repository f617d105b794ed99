"""What others print goes to the log, whatever way they print, and what we print to the terminal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.views.console import redirect_output
from tests.runs import ROOT


def test_all_that_others_print_goes_to_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "new" / "raymix.log"
    with redirect_output(log) as console:
        os.write(1, b"past every stream\n")
        os.write(2, b"and as an error\n")
        subprocess.run(["echo", "from a child"], check=True)
        console.print("ours")
    os.write(1, b"afterwards\n")
    shown, errors = capfd.readouterr()
    assert (shown, errors) == ("ours\nafterwards\n", "")
    assert {"past every stream", "and as an error", "from a child"} <= set(log.read_text().splitlines())


def test_a_log_on_a_full_disk_hides_no_error() -> None:
    code = (
        "from pathlib import Path; from orchestrator.views.console import redirect_output\n"
        "with redirect_output(Path('/dev/full')):\n"
        "    print('what does not fit')\n"
        "    raise ValueError('the reason')"
    )
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=buffered, capture_output=True, text=True, check=False)
    assert done.stderr.strip().endswith("ValueError: the reason")
