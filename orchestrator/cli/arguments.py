"""Arguments that several verbs share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from orchestrator.config.sweep import SweepConfig

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file; see `raymix schema`.")]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY.PATH=VALUE",
        help="Override a key, e.g. stages[1].seed=3; can be given several times.",
        default_factory=list,
        show_default=False,
    ),
]


def read_config(path: Path, overrides: list[str], check_files: bool = True) -> "SweepConfig":
    """`load_config`, imported only when a verb needs it, so that `--help` stays fast."""
    from orchestrator.config.load import load_config

    return load_config(path, overrides, check_files)
