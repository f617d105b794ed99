"""What others print goes to the log, whatever way they print, and what we print to the terminal."""

import os
import subprocess
from pathlib import Path

import pytest

from orchestrator.views.console import redirect_output


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
