"""The verbs of `raymix weights RUN`: look at a run's weights and change them while it trains."""

import getpass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from orchestrator.views.errors import plain_errors

weights_app = typer.Typer(
    help="Show or change the weights of a run while it trains; every change is journaled and replayed.",
    no_args_is_help=True,
)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.", exists=True, file_okay=False)]
By = Annotated[str, typer.Option(help="Who asks.", default_factory=getpass.getuser)]
Why = Annotated[str, typer.Option(help="For which reason.")]


@weights_app.callback()
def weights(context: typer.Context, run: Run) -> None:
    """Show or change the weights of a run while it trains; every change is journaled and replayed."""
    context.obj = run


@weights_app.command()
def show(context: typer.Context) -> None:
    """The shares that hold now, who decided them, and what is pinned."""
    with plain_errors():
        from orchestrator.views.weights import weights_view

        Console().print(weights_view(context.obj))


@weights_app.command()
def history(context: typer.Context) -> None:
    """Every version: from which step on, by whom, and why."""
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
    """Set shares; other domains keep their proportions, and the algorithm goes on from there."""
    _ask(context, "set", shares, by, why)


@weights_app.command()
def pin(
    context: typer.Context,
    domains: Annotated[list[str], typer.Argument(metavar="DOMAIN[=SHARE]...")],
    by: By,
    why: Why = "",
) -> None:
    """Hold domains at a share, or at their present one, while the algorithm moves the rest."""
    _ask(context, "pin", domains, by, why)


@weights_app.command()
def release(
    context: typer.Context,
    by: By,
    domains: Annotated[list[str] | None, typer.Argument(metavar="[DOMAIN...]")] = None,
    why: Why = "",
) -> None:
    """Give pinned domains (all of them, where none is named) back to the algorithm."""
    _ask(context, "release", domains or [], by, why)


@weights_app.command()
def pause(context: typer.Context, by: By, why: Why = "") -> None:
    """Keep the shares as they are until `resume`."""
    _ask(context, "pause", [], by, why)


@weights_app.command()
def resume(context: typer.Context, by: By, why: Why = "") -> None:
    """Let the algorithm's answers hold again."""
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
            where = f"{fault['loc'][-1]}: " if fault["loc"] else ""
            raise ValueError(where + fault["msg"].removeprefix("Value error, ")) from None
        ask(context.obj, request, Console())
