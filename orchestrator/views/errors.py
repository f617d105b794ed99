"""Errors as the user sees them: a line each, no traceback, and an exit code."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from orchestrator.config.errors import ConfigError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def _told(error: Exception) -> str:
    """An error in a line; of the system, with the place and what to do where that is known."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    place = f"{error.filename}: " if error.filename else ""
    rest = "; free some, or choose another output_dir (and data.cache_dir)" if error.errno in _NO_ROOM else ""
    return f"{place}{error.strerror}{rest}"


@contextmanager
def plain_errors() -> Iterator[None]:
    """No traceback: a line for each fault of the configuration and exit code 2, a line for what failed later and 1."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        yield
    except ConfigError as error:
        for line in error.lines:
            errors.print(line, markup=False)
        raise typer.Exit(2) from None
    except (ValueError, RuntimeError, OSError) as error:
        errors.print(f"raymix: {_told(error)}", markup=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        errors.print("stopped; the same command goes on from the last checkpoint")
        raise typer.Exit(130) from None
