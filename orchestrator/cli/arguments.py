"""Arguments that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file; see `raymix schema`.")]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY.PATH=VALUE", help="Override a key, e.g. stages[1].seed=3; may be given several times."
    ),
]
