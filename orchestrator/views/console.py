"""The terminal of a verb: errors as one line each, and third-party output in a log file instead."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer
from rich.console import Console

from orchestrator.runs.failure import explain


@contextmanager
def redirect_output(log: Path) -> Iterator[Console]:
    """Send everything that this process and its children write to stdout and stderr to `log`.

    Yields a console on the real stdout.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("ab") as file,
        os.fdopen(os.dup(1), "w", encoding="utf-8") as terminal,
        redirect_descriptors(file.fileno(), 1, 2),
    ):
        yield Console(file=terminal)


@contextmanager
def redirect_descriptors(target: int, *descriptors: int) -> Iterator[None]:
    """Send what is written to these file descriptors to another one.

    Ray's raylet, DeepSpeed's compiled code and bare prints bypass loggers and Python's streams.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    real = [os.dup(descriptor) for descriptor in descriptors]
    for descriptor in descriptors:
        os.dup2(target, descriptor)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # a full disk, whose error may be on its way through here
                stream.flush()
        for kept, descriptor in zip(real, descriptors, strict=True):
            os.dup2(kept, descriptor)
            os.close(kept)


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
