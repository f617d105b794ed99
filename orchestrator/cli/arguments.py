"""Arguments that several verbs share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workers.storage.addresses import is_uri, place_of

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


def run_folder(text: str) -> Path:
    """The folder of a run; for a URI the copy on this machine, with all small files as they are in the storage."""
    folder = Path(text)
    if not is_uri(text):
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise typer.BadParameter(f"Directory {text!r} {what}.")
        return folder
    from workers.storage.client import StorageError, impatient
    from workers.storage.run_copy import fetch_small

    try:
        folder = place_of(text)
        with impatient():
            if not fetch_small(folder):
                raise typer.BadParameter(f"{text}: no run is there.")
    except (ValueError, StorageError) as error:
        raise typer.BadParameter(str(error)) from None
    return folder


def runs_folder(text: str) -> Path:
    """A folder of runs; for a URI the place of its copy on this machine."""
    try:
        return place_of(text) if is_uri(text) else Path(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def read_config(path: Path, overrides: list[str], check_files: bool = True) -> "SweepConfig":
    """`load_config`, imported only when a verb needs it, so that `--help` stays fast."""
    from orchestrator.config.load import load_config

    return load_config(path, overrides, check_files)
