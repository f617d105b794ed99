"""Errors as the user sees them: one line each, no traceback, and an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from orchestrator.runs.failure import explain


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
