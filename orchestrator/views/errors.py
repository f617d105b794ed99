"""Errors as the user sees them: a line each, no traceback, and an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from orchestrator.runs.failure import explain


@contextmanager
def plain_errors() -> Iterator[None]:
    """No traceback: a line for each fault of the configuration and exit code 2, a line for what failed later and 1."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        from orchestrator.config.errors import ConfigError  # it brings the whole configuration, so not before it is due

        if isinstance(error, ConfigError):
            for line in error.lines:
                errors.print(line, markup=False)
            raise typer.Exit(2) from None
        errors.print(f"raymix: {explain(error)}", markup=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        errors.print("stopped; the same command goes on from the last checkpoint")
        raise typer.Exit(130) from None
