"""Redirect third-party output to a log file; keep our own on the terminal."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console


@contextmanager
def redirect_output(log: Path) -> Iterator[Console]:
    """Send everything that this process and its children write to stdout and stderr to `log`.

    Ray's raylet, DeepSpeed's compiled code and bare prints bypass loggers, so the file descriptors themselves are
    redirected. Yields a console on the real stdout.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    real_stdout, real_stderr = os.dup(1), os.dup(2)
    with log.open("ab") as file, os.fdopen(os.dup(1), "w", encoding="utf-8") as terminal:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield Console(file=terminal)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(real_stdout, 1)
            os.dup2(real_stderr, 2)
            os.close(real_stdout)
            os.close(real_stderr)
