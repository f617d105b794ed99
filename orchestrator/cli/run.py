"""The verbs for one run: check, inspect, run, detect, reference, report, export, evaluate and probe."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from orchestrator.cli.arguments import ConfigFile, Overrides, read_config, run_folder
from workers.storage.addresses import is_uri

TrainedRun = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="Folder or URI of a finished run; of another one with --best.", parser=run_folder
    ),
]
Best = Annotated[bool, typer.Option("--best", help="The model of the best evaluation, not of the last step.")]


def check(
    config: ConfigFile,
    overrides: Overrides,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Print the plan of a run without training: rows used and left out, tokens, epochs, steps, memory."""
    if as_json:
        from orchestrator.check.record import print_checked

        print_checked(lambda: read_config(config, overrides))
        return
    settings = read_config(config, overrides)
    from orchestrator.check.driver import check as print_plan

    print_plan(settings, Console())


def inspect(
    config: ConfigFile,
    overrides: Overrides,
    domain: Annotated[str | None, typer.Option(metavar="D", help="Show only this domain.")] = None,
    split: Annotated[Literal["train", "eval"], typer.Option(help="Training rows or held-out rows.")] = "train",
    rows: Annotated[int, typer.Option(min=1, help="Rows per domain.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line, for programs.")] = False,
) -> None:
    """Show what the model will see: the first rows as text with control tokens, and which parts are learned."""
    settings = read_config(config, overrides)
    from orchestrator.inspect.driver import inspect as show_rows

    show_rows(settings, domain, split, rows, as_json, Console())


def run(config: ConfigFile, overrides: Overrides) -> None:
    """Train a model, or resume an interrupted run."""
    settings = read_config(config, overrides)
    from orchestrator.sweeps.run import run as run_training

    run_training(settings.plan, Console())


def detect(
    config: ConfigFile,
    overrides: Overrides,
    output: Annotated[Path, typer.Option(help="File to write, for `mixing.initial`.")] = Path("distribution.json"),
) -> None:
    """Estimate how much of each domain the base model knows: it writes texts, a judge names their domains."""
    settings = read_config(config, overrides)
    from orchestrator.prepare.detection.driver import detect as detect_distribution

    detect_distribution(settings, output, Console())


def reference(
    config: ConfigFile,
    overrides: Overrides,
    output: Annotated[Path, typer.Option(help="File to write, for `mixing.reference`.")] = Path("reference.json"),
) -> None:
    """Compute the reference losses for VersaTune: the best loss of fine-tuning on each domain alone."""
    settings = read_config(config, overrides)
    from orchestrator.sweeps.references import reference as compute
    from orchestrator.training.resolve import write_references

    losses = compute(settings, Console())
    write_references(output, losses)
    Console().print(f"{output}: reference losses of {len(losses)} domains")


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders or URIs of runs.", parser=run_folder)],
    output: Annotated[Path | None, typer.Option(help="HTML file to write.")] = None,
) -> None:
    """Write an HTML report of one run, or a comparison of several, and print its table."""
    from orchestrator.views.report.comparison import comparison_table
    from orchestrator.views.report.html import write_report

    target = output or (runs[0] / "report.html" if len(runs) == 1 else Path("comparison.html"))
    write_report(runs, target)
    Console().print(comparison_table(runs))
    Console().print(f"report: {target}", highlight=False)


def export(
    run: TrainedRun,
    output: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write.")],
    kind: Annotated[
        Literal["merged", "bf16", "adapter"],
        typer.Option(help="Weights exactly as trained; converted to bfloat16; or the LoRA adapter alone."),
    ] = "merged",
    best: Best = False,
) -> None:
    """Export a run's model to a folder for sharing, with a model card that states the mixture it was trained on."""
    from orchestrator.export.driver import export as export_result
    from workers.storage.run_copy import fetch_model

    fetch_model(run)
    export_result(run, output, kind, best, Console())


def evaluate(
    run: TrainedRun,
    tasks: Annotated[str, typer.Option(metavar="A,B,...", help="Tasks or groups, as listed by `lm-eval ls tasks`.")],
    tasks_folder: Annotated[
        Path | None,
        typer.Option(help="Folder of local task files (YAML, and their Python files).", exists=True, file_okay=False),
    ] = None,
    best: Best = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate only the first N samples of each task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences per forward pass.")] = 8,
    chat: Annotated[bool, typer.Option("--chat", help="Format prompts with the model's chat template.")] = False,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Allow running code from the model, and metric scripts from the hub.")
    ] = False,
) -> None:
    """Score a run's base model and result on benchmarks with lm-evaluation-harness; adds them to report and card."""
    from orchestrator.benchmarks.driver import evaluate as evaluate_run
    from workers.storage.run_copy import fetch_model

    fetch_model(run)
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
        typer.Argument(
            metavar="RUN_OR_MODEL...", help="Folders or URIs of runs (base and result), model folders, or hub names."
        ),
    ],
    overrides: Overrides,
    config: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="YAML file with the domains; default: the first run's.")
    ] = None,
    layer: Annotated[str, typer.Option(help="Fraction of the depth, e.g. 0.5, or layer number, e.g. 12.")] = "0.5",
    num_examples: Annotated[int, typer.Option(min=3, help="Held-out texts per domain.")] = 100,
    output: Annotated[Path, typer.Option(help="HTML file to write; the numbers go to .json.")] = Path("probe.html"),
) -> None:
    """Show how well models separate the domains internally: t-SNE, silhouette, linear probe, centroid distances."""
    settings = None if config is None else read_config(config, overrides)
    from orchestrator.probe.driver import probe as probe_models
    from workers.storage.run_copy import fetch_model

    for place, name in enumerate(models):
        if is_uri(name):
            folder = run_folder(name)
            fetch_model(folder)
            models[place] = str(folder)
    probe_models(models, settings, layer, num_examples, output, Console())
