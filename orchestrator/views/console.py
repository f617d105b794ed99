"""Redirect third-party output to a log file; keep our own on the terminal."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from rich.console import Console

from orchestrator.runs.failure import explain


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


@contextmanager
def plain_errors() -> Iterator[None]:
    """Print a line for each configuration error and exit with 2; print a line for any later error and exit with 1."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        from orchestrator.config.errors import ConfigError  # imports the whole configuration, so only when needed

        if isinstance(error, ConfigError):
            for line in error.lines:
                errors.print(line, markup=False)
            raise typer.Exit(2) from None
        errors.print(f"raymix: {explain(error)}", markup=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        errors.print("stopped; run the same command to resume from the last checkpoint")
        raise typer.Exit(130) from None
