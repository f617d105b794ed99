"""The verbs of one training: look before it, do it, and see, measure and give away what came of it."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from orchestrator.cli.arguments import ConfigFile, Overrides, read_config
from orchestrator.views.errors import plain_errors


def check(
    config: ConfigFile,
    overrides: Overrides,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Print the plan of a run without training: rows and what leaves them, tokens, epochs, steps, memory."""
    with plain_errors():
        if as_json:
            from orchestrator.check.json import print_checked

            print_checked(lambda: read_config(config, overrides))
            return
        settings = read_config(config, overrides)
        from orchestrator.check.driver import check as print_plan

        print_plan(settings, Console())


def inspect(
    config: ConfigFile,
    overrides: Overrides,
    domain: Annotated[str | None, typer.Option(metavar="D", help="Only this domain.")] = None,
    split: Annotated[Literal["train", "eval"], typer.Option(help="Training rows, or those held out.")] = "train",
    rows: Annotated[int, typer.Option(min=1, help="Rows of each domain.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")] = False,
) -> None:
    """Show what the model will see: the first rows as text, control tokens included, and what of them is learned."""
    with plain_errors():
        settings = read_config(config, overrides)
        from orchestrator.inspect.driver import inspect as show_rows

        show_rows(settings, domain, split, rows, as_json, Console())


def run(config: ConfigFile, overrides: Overrides) -> None:
    """Train; the same command goes on where it stopped."""
    with plain_errors():
        settings = read_config(config, overrides)
        from orchestrator.sweeps.stages.driver import run as run_training

        run_training(settings.plan, Console())


def detect(
    config: ConfigFile,
    overrides: Overrides,
    output: Annotated[Path, typer.Option(help="File to write, for `mixing.initial`.")] = Path("distribution.json"),
) -> None:
    """Detect which share of each domain the base model knows: it writes texts, a judge names their domains."""
    with plain_errors():
        settings = read_config(config, overrides)
        from orchestrator.prepare.detection.driver import detect as detect_distribution

        detect_distribution(settings, output, Console())


def reference(
    config: ConfigFile,
    overrides: Overrides,
    output: Annotated[Path, typer.Option(help="File to write, for `mixing.reference`.")] = Path("reference.json"),
) -> None:
    """Compute the reference losses that VersaTune compares with: the best of fine-tuning on each domain alone."""
    with plain_errors():
        settings = read_config(config, overrides)
        from orchestrator.sweeps.references import reference as compute
        from orchestrator.training.resolve import write_references

        losses = compute(settings, Console())
        write_references(output, losses)
        Console().print(f"{output}: reference losses of {len(losses)} domains")


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


def probe(
    models: Annotated[
        list[str],
        typer.Argument(metavar="RUN_OR_MODEL...", help="Folders of runs (base and result), model folders, hub names."),
    ],
    overrides: Overrides,
    config: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="YAML file of the domains; default: the first run's own.")
    ] = None,
    layer: Annotated[str, typer.Option(help="Fraction of the depth, as 0.5, or number of the layer, as 12.")] = "0.5",
    num_examples: Annotated[int, typer.Option(min=3, help="Held-out texts of each domain.")] = 100,
    output: Annotated[Path, typer.Option(help="HTML file to write; the numbers go to .json.")] = Path("probe.html"),
) -> None:
    """Show how well models keep the domains apart inside: t-SNE, silhouette, linear probe, centroid distances."""
    with plain_errors():
        settings = None if config is None else read_config(config, overrides)
        from orchestrator.probe.driver import probe as probe_models

        probe_models(models, settings, layer, num_examples, output, Console())
