"""`raymix`: the verbs are in the table below, in the order in which the help lists them.

Each verb imports what it needs when it is called, so that help, completion and a refused configuration take a fraction
of a second. Import nothing heavier than typer and rich at the top of this file or of the verbs' files.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from orchestrator.cli import jobs, run, sweep
from orchestrator.cli.arguments import runs_folder
from orchestrator.cli.weights import weights_app
from orchestrator.views.console import plain_errors

_ABOUT = "Fine-tune a language model on several domains, and adjust how much of each it sees while it trains."
_PACKAGES = ("torch", "ray", "deepspeed", "transformers")

app = typer.Typer(
    help=_ABOUT,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def init(
    data: Annotated[list[Path], typer.Argument(metavar="DATA...", help="Data files, or folders of them.")],
    model: Annotated[str, typer.Option(help="Base model: a folder, or a name on the hub.")] = "Qwen/Qwen2.5-0.5B",
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("config.yaml"),
) -> None:
    """Inspect your data files and write a commented configuration for them."""
    import torch

    from orchestrator.cli.init.writing import init as write_config

    write_config(data, model, output, torch.cuda.device_count(), Console())


def demo(
    folder: Annotated[Path, typer.Option(help="Folder for the demo's data, base model and run.")] = Path("demo"),
) -> None:
    """Generate a small base model and six domains, train on them, and show what the model learned."""
    from orchestrator.cli.demo.driver import run_demo

    run_demo(folder, Console())


def dashboard(
    runs_dir: Annotated[
        Path, typer.Argument(metavar="RUNS_DIR", help="Folder or URI of the runs.", parser=runs_folder)
    ] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8275,
    address: Annotated[
        str | None,
        typer.Option(help="A cluster's dashboard, e.g. http://HEAD:8265: show the folder RUNS_DIR of its head node."),
    ] = None,
) -> None:
    """Watch and steer the runs below a folder in a browser on this machine.

    The server listens on 127.0.0.1 only. From another machine, use the same port on both sides:
    ssh -L 8275:127.0.0.1:8275 HOST. With --address the server runs as a job on the cluster's head node, for run folders
    that this machine cannot see.
    """
    if address is None:
        from orchestrator.dashboard.server import serve

        serve(runs_dir, port, Console())
    else:
        from orchestrator.dashboard.remote import serve_on_cluster

        serve_on_cluster(runs_dir, port, address, Console())


def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown page instead.")] = False,
) -> None:
    """Print the JSON Schema of the configuration, for editors."""
    from orchestrator.config.sweep import SweepConfig

    if markdown:
        from orchestrator.config.page import config_page

        sys.stdout.write(config_page(SweepConfig.model_json_schema()))
    else:
        json.dump(SweepConfig.model_json_schema(), sys.stdout, indent=2)
        sys.stdout.write("\n")


VERBS = (
    init,
    run.check,
    run.inspect,
    run.run,
    demo,
    run.detect,
    run.reference,
    run.report,
    run.export,
    run.evaluate,
    run.probe,
    sweep.compare,
    sweep.tune,
    sweep.study,
    sweep.coarse_search,
    jobs.submit,
    jobs.status,
    jobs.logs,
    jobs.stop,
    dashboard,
)
for _verb in VERBS:
    app.command()(plain_errors()(_verb))
app.command()(schema)  # its output is piped: where the reader is gone, click ends it quietly
app.add_typer(weights_app, name="weights")


def _print_versions(is_asked: bool) -> None:
    if is_asked:
        from platform import python_version

        others = ", ".join([f"Python {python_version()}", *(_version(name) for name in _PACKAGES)])
        typer.echo(f"{_version('raymix')}\n{others}")
        raise typer.Exit


def _version(package: str) -> str:
    """Name and version of an installed package, without the seconds that importing it would take."""
    from importlib import metadata

    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return f"{package} not installed"


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_versions,
            is_eager=True,
            help="Print the versions of raymix and its main libraries, and exit.",
        ),
    ] = False,
) -> None:
    """Options before the verb."""


def main() -> None:
    app()


if __name__ == "__main__":
    main()
