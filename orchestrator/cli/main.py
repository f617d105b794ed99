"""The verbs of the command line, nothing else."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from orchestrator.cli.arguments import ConfigFile, Overrides
from orchestrator.cli.jobs import jobs_app
from orchestrator.cli.looking import looking_app
from orchestrator.cli.weights import weights_app
from orchestrator.config.load import load_config
from orchestrator.config.sweep import SweepConfig
from orchestrator.views.errors import plain_errors

app = typer.Typer(
    help="Fine-tune a language model on several domains and decide, while it trains, how much of each it sees.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(looking_app)
app.add_typer(jobs_app)
app.add_typer(weights_app, name="weights")


@app.command()
def init(
    data: Annotated[list[Path], typer.Argument(metavar="DATA...", help="Data files, or folders of them.")],
    model: Annotated[str, typer.Option(help="Base model: a folder, or a name on the hub.")] = "Qwen/Qwen2.5-0.5B",
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("config.yaml"),
) -> None:
    """Look at your files and write a commented configuration for them."""
    with plain_errors():
        import torch

        from orchestrator.cli.init.writing import init as write_config

        write_config(data, model, output, torch.cuda.device_count(), Console())


@app.command()
def run(config: ConfigFile, overrides: Overrides = []) -> None:  # noqa: B006
    """Train; the same command goes on where it stopped."""
    with plain_errors():
        settings = load_config(config, overrides)
        from orchestrator.sweeps.stages.driver import run as run_training

        run_training(settings.plan, Console())


@app.command()
def reference(
    config: ConfigFile,
    overrides: Overrides = [],  # noqa: B006
    output: Annotated[Path, typer.Option(help="File to write, for `mixing.reference`.")] = Path("reference.json"),
) -> None:
    """Compute the reference losses that VersaTune compares with: the best of fine-tuning on each domain alone."""
    with plain_errors():
        settings = load_config(config, overrides)
        from orchestrator.sweeps.references import reference as compute
        from orchestrator.training.resolve import write_references

        losses = compute(settings, Console())
        write_references(output, losses)
        Console().print(f"{output}: reference losses of {len(losses)} domains")


@app.command()
def detect(
    config: ConfigFile,
    overrides: Overrides = [],  # noqa: B006
    output: Annotated[Path, typer.Option(help="File to write, for `mixing.initial`.")] = Path("distribution.json"),
) -> None:
    """Detect which share of each domain the base model knows: it writes texts, a judge names their domains."""
    with plain_errors():
        settings = load_config(config, overrides)
        from orchestrator.prepare.detection.driver import detect as detect_distribution

        detect_distribution(settings, output, Console())


@app.command()
def study(
    config: ConfigFile,
    overrides: Overrides = [],  # noqa: B006
    estimate: Annotated[bool, typer.Option("--estimate", help="Say what it costs and stop.")] = False,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=0.001, help="Speed to estimate with; default: that of finished trainings.")
    ] = None,
) -> None:
    """Study how amounts and order of data act (DMT): the cells of `study`, trainings that they share done once."""
    with plain_errors():
        settings = load_config(config, overrides)
        from orchestrator.sweeps.study.driver import run_study

        run_study(settings, Console(), estimate_only=estimate, tokens_per_second=tokens_per_second)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.", exists=True)],
    output: Annotated[Path | None, typer.Option(help="HTML file to write.")] = None,
) -> None:
    """Write the HTML report of a run, or of several side by side, and print their table."""
    with plain_errors():
        from orchestrator.views.report import comparison_table, write_report

        target = output or (runs[0] / "report.html" if len(runs) == 1 else Path("comparison.html"))
        write_report(runs, target)
        Console().print(comparison_table(runs))
        Console().print(f"report: {target}", highlight=False)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.", exists=True, file_okay=False)],
    output: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write.")],
    kind: Annotated[
        Literal["merged", "bf16", "adapter"],
        typer.Option(help="As trained, to the bit; in bfloat16; or a LoRA adapter alone."),
    ] = "merged",
    best: Annotated[bool, typer.Option("--best", help="The best evaluation's model, not the last step's.")] = False,
) -> None:
    """Write a run's model to a folder to give away, with a card of the mixture that it really saw."""
    with plain_errors():
        from orchestrator.export.driver import export as export_result

        export_result(run, output, kind, best, Console())


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.", exists=True, file_okay=False)],
    tasks: Annotated[str, typer.Option(metavar="A,B,...", help="Tasks or groups of them, as `lm-eval ls tasks` says.")],
    tasks_folder: Annotated[
        Path | None,
        typer.Option(
            help="Folder of local task files (YAML, and Python that they name).", exists=True, file_okay=False
        ),
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="The best evaluation's model, not the last step's.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many samples of each task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a forward pass.")] = 8,
    chat: Annotated[bool, typer.Option("--chat", help="Put questions into the model's chat template.")] = False,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run code that the model writes, and metrics' programs of the hub.")
    ] = False,
) -> None:
    """Score a run's base model and its result on benchmarks, by lm-evaluation-harness; into report and model card."""
    with plain_errors():
        from orchestrator.benchmarks.driver import evaluate as evaluate_run

        evaluate_run(
            run,
            [name.strip() for name in tasks.split(",") if name.strip()],
            Console(),
            tasks_folder=tasks_folder,
            is_best=best,
            limit=limit,
            batch_size=batch_size,
            chat=chat,
            allow_code=allow_code,
        )


@app.command()
def compare(
    config: ConfigFile,
    overrides: Overrides = [],  # noqa: B006
    algorithms: Annotated[
        str,
        typer.Option(metavar="A,B,...", help="Algorithms or labels of compare.variants; the first is the baseline."),
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each.")] = 3,
) -> None:
    """Compare algorithms, or other variants of a run, at the same budget over several seeds."""
    with plain_errors():
        settings = load_config(config, overrides)
        from orchestrator.sweeps.compare.driver import compare as compare_variants

        labels = [label.strip() for label in algorithms.split(",") if label.strip()]
        compare_variants(settings, labels, seeds, Console())


@app.command()
def tune(config: ConfigFile, overrides: Overrides = []) -> None:  # noqa: B006
    """Search the values, or the mix, with the lowest loss: many runs side by side by Ray Tune; see `search`."""
    with plain_errors():
        settings = load_config(config, overrides)
        from orchestrator.sweeps.tune.driver import tune as search_values

        search_values(settings, Console())


@app.command()
def coarse_search(config: ConfigFile, overrides: Overrides = []) -> None:  # noqa: B006
    """Search which layers and modules to train (CoFiTune), by training each candidate; see `coarse_search`."""
    with plain_errors():
        settings = load_config(config, overrides)
        from orchestrator.sweeps.coarse.driver import coarse_search as search_coarsely

        search_coarsely(settings, Console())


@app.command()
def probe(
    models: Annotated[
        list[str],
        typer.Argument(metavar="RUN_OR_MODEL...", help="Folders of runs (base and result), model folders, hub names."),
    ],
    config: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="YAML file of the domains; default: the first run's own.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    layer: Annotated[str, typer.Option(help="Fraction of the depth, as 0.5, or number of the layer, as 12.")] = "0.5",
    num_examples: Annotated[int, typer.Option(min=3, help="Held-out texts of each domain.")] = 100,
    output: Annotated[Path, typer.Option(help="HTML file to write; the numbers go to .json.")] = Path("probe.html"),
) -> None:
    """Show how well models keep the domains apart inside: t-SNE, silhouette, linear probe, centroid distances."""
    with plain_errors():
        settings = None if config is None else load_config(config, overrides)
        from orchestrator.probe.driver import probe as probe_models

        probe_models(models, settings, layer, num_examples, output, Console())


@app.command()
def dashboard(
    runs_dir: Annotated[Path, typer.Argument(metavar="RUNS_DIR", help="Folder of the runs.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8275,
    address: Annotated[
        str | None,
        typer.Option(help="A cluster's dashboard, as http://HEAD:8265: show the folder RUNS_DIR of its head."),
    ] = None,
) -> None:
    """Show the runs below a folder while they go on, and steer them, in a browser of this machine.

    It listens on 127.0.0.1 only. From another machine: ssh -L 8275:127.0.0.1:8275 HOST, the same port on both sides.
    With --address it does so on a cluster's head, as a job, for run folders that this machine does not see.
    """
    with plain_errors():
        if address is None:
            from orchestrator.dashboard.server import serve

            serve(runs_dir, port, Console())
        else:
            from orchestrator.dashboard.remote import serve_on_cluster

            serve_on_cluster(runs_dir, port, address, Console())


@app.command()
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="A page to read instead.")] = False,
) -> None:
    """Print the JSON Schema of the configuration, for editors."""
    if markdown:
        from orchestrator.config.page import config_page

        sys.stdout.write(config_page(SweepConfig.model_json_schema()))
    else:
        json.dump(SweepConfig.model_json_schema(), sys.stdout, indent=2)
        sys.stdout.write("\n")


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Folder of the demo's data, base model and run.")] = Path("demo"),
) -> None:
    """Make a small base model and generated domains, train on them, and show what the model learned."""
    with plain_errors():
        from orchestrator.cli.demo import run_demo

        run_demo(folder, Console())


def main() -> None:
    """Entry point of the `raymix` command."""
    app()


if __name__ == "__main__":
    main()
