"""The verbs of `raymix weights RUN`: show a run's mixture and change it while it trains."""

import getpass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from orchestrator.cli.arguments import run_folder
from orchestrator.views.console import plain_errors

weights_app = typer.Typer(no_args_is_help=True)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder or URI of a run.", parser=run_folder)]
By = Annotated[str, typer.Option(help="Who requests the change.", default_factory=getpass.getuser)]
Why = Annotated[str, typer.Option(help="Reason for the change.")]


@weights_app.callback()
def weights(context: typer.Context, run: Run) -> None:
    """Show or change the domain shares of a run while it trains; every change is recorded and replayed on resume."""
    context.obj = run


@weights_app.command()
def show(context: typer.Context) -> None:
    """Show the current shares, who decided them, and which are pinned."""
    with plain_errors():
        from orchestrator.views.weights import weights_view

        Console().print(weights_view(context.obj))


@weights_app.command()
def history(context: typer.Context) -> None:
    """List every version: its first step, who made it, and why."""
    with plain_errors():
        from orchestrator.views.weights import history_view

        Console().print(history_view(context.obj))


@weights_app.command("set")
def set_shares(
    context: typer.Context,
    shares: Annotated[list[str], typer.Argument(metavar="DOMAIN=SHARE...")],
    by: By,
    why: Why = "",
) -> None:
    """Set shares; the other domains keep their proportions, and the algorithm continues from there."""
    _ask(context, "set", shares, by, why)


@weights_app.command()
def pin(
    context: typer.Context,
    domains: Annotated[list[str], typer.Argument(metavar="DOMAIN[=SHARE]...")],
    by: By,
    why: Why = "",
) -> None:
    """Fix domains at a given or their current share while the algorithm moves the others."""
    _ask(context, "pin", domains, by, why)


@weights_app.command()
def release(
    context: typer.Context,
    by: By,
    domains: Annotated[list[str] | None, typer.Argument(metavar="[DOMAIN...]")] = None,
    why: Why = "",
) -> None:
    """Release pinned domains (all of them if none is named) to the algorithm."""
    _ask(context, "release", domains or [], by, why)


@weights_app.command()
def pause(context: typer.Context, by: By, why: Why = "") -> None:
    """Keep the shares as they are until `resume`."""
    _ask(context, "pause", [], by, why)


@weights_app.command()
def resume(context: typer.Context, by: By, why: Why = "") -> None:
    """Let the algorithm change the shares again."""
    _ask(context, "resume", [], by, why)


def _ask(
    context: typer.Context,
    kind: Literal["set", "pin", "release", "pause", "resume"],
    words: list[str],
    by: str,
    why: str,
) -> None:
    with plain_errors():
        from pydantic import ValidationError

        from orchestrator.controller.operator import ControlRequest
        from orchestrator.views.weights import ask

        shares: dict[str, Any] = dict(word.rsplit("=", 1) for word in words if "=" in word)
        domains = [word for word in words if "=" not in word]
        try:
            request = ControlRequest(kind=kind, shares=shares, domains=domains, by=by, why=why)
        except ValidationError as error:
            fault = error.errors()[0]
            message = fault["msg"].removeprefix("Value error, ")
            match fault["loc"]:
                case ("shares", domain):
                    message = f"{domain}: is {fault['input']}; a share is a number from 0 to 1"
                case (name, *_):
                    message = f"--{name}: {message[0].lower()}{message[1:]}"
            raise ValueError(message) from None
        ask(context.obj, request, Console())
