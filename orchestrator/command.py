"""What all verbs of the command line share: their arguments, and errors as a person should see them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.config_errors import ConfigError

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file; see `raymix schema`.")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a key; may be given several times.")
]


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
        errors.print(f"raymix: {error}", markup=False)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        errors.print("stopped; the same command goes on from the last checkpoint")
        raise typer.Exit(130) from None
