"""The verbs that look before a run and train nothing."""

from typing import Annotated, Literal

import typer
from rich.console import Console

from orchestrator.cli.arguments import ConfigFile, Overrides
from orchestrator.config.load import load_config
from orchestrator.views.errors import plain_errors

looking_app = typer.Typer()


@looking_app.command()
def check(
    config: ConfigFile,
    overrides: Overrides = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Print the plan of a run without training: rows and what leaves them, tokens, epochs, steps, memory."""
    with plain_errors():
        if as_json:
            from orchestrator.check.json import print_checked

            print_checked(lambda: load_config(config, overrides))
            return
        settings = load_config(config, overrides)
        from orchestrator.check.driver import check as print_plan

        print_plan(settings, Console())


@looking_app.command()
def inspect(
    config: ConfigFile,
    overrides: Overrides = [],  # noqa: B006
    domain: Annotated[str | None, typer.Option(metavar="D", help="Only this domain.")] = None,
    split: Annotated[Literal["train", "eval"], typer.Option(help="Training rows, or those held out.")] = "train",
    rows: Annotated[int, typer.Option(min=1, help="Rows of each domain.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")] = False,
) -> None:
    """Show what the model will see: the first rows as text, control tokens included, and what of them is learned."""
    with plain_errors():
        settings = load_config(config, overrides)
        from orchestrator.inspect.driver import inspect as show_rows

        show_rows(settings, domain, split, rows, as_json, Console())
