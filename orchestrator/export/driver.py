"""`raymix export`: copy or convert a run's result and write its card, all or nothing."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console
from rich.text import Text

from orchestrator.controller.operator import describe_change
from orchestrator.export.best import is_kept, write_kept
from orchestrator.runs.benchmark_record import asked_for
from orchestrator.runs.folder import SUMMARY_FILE, RunFolder, read_run
from orchestrator.runs.summary import summarise
from orchestrator.views.console import redirect_output
from orchestrator.views.format import (
    format_count,
    format_epochs,
    format_loss,
    format_score,
    format_score_change,
    format_share,
    printable,
)
from orchestrator.views.summary import HARMFUL, no_best_reason, verdict_lines, verdict_sentence
from workers.bounded import UnreadableFileError, read_object
from workers.durable import commit_folder, temporary_folder
from workers.model.base_config import base_name, is_hub_name

Kind = Literal["merged", "bf16", "adapter"]

_SETTINGS = (
    ("training", "learning_rate"),
    ("training", "schedule"),
    ("training", "global_batch_size"),
    ("training", "batches"),
    ("data", "max_length"),
    ("data", "packing"),
    ("model", "dtype"),
    ("seed",),
)
_FILTERS: dict[str, Callable[..., str]] = {
    "count": format_count,
    "described": describe_change,
    "epochs": format_epochs,
    "loss": format_loss,
    "score": format_score,
    "score_change": format_score_change,
    "share": format_share,
}


def export(run_folder: Path, output: Path, kind: Kind, is_best: bool, console: Console) -> None:
    """Write the model of a run to a new folder, with its tokenizer and a model card, as `raymix export` does.

    ValueError if there is no such result, or the output folder already exists; ExportError if the result does not load
    completely, is not finite, or differs from the source. No files remain then.
    """
    run, source = find_result(run_folder, is_best, console)
    if output.exists():
        raise ValueError(f"{output} already exists; name a new folder")
    adapter = source / "adapter"
    if kind == "adapter" and not adapter.is_dir():
        strategy = run.setting("training", "strategy", "type")
        raise ValueError(f"{source} has no adapter: the run's strategy is {strategy}, not lora")
    temporary = temporary_folder(output.resolve())
    try:
        with redirect_output(run_folder / "raymix.log"):
            _fill(source, temporary, kind)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    (temporary / "README.md").write_text(model_card(run, kind, is_best, _base_of(run, source, kind)), encoding="utf-8")
    commit_folder(temporary, output.resolve())
    size = sum(file.stat().st_size for file in output.iterdir())
    console.print(f"{output}: {kind}, {size / 2**20:,.1f} MiB, with a model card", markup=False, highlight=False)
    result = summarise(run)
    if result.verdict in HARMFUL and not is_best:
        console.print(Text(verdict_lines(run, result)[0]), style="bold red")


def find_result(run_folder: Path, is_best: bool, console: Console) -> tuple[RunFolder, Path]:
    """A finished run and the folder of its model; of one that was cut off, the best model so far can be asked for.

    ValueError if the run has no such model.
    """
    run = read_run(run_folder)
    if (reason := run.problems.get(SUMMARY_FILE)) is not None:
        raise UnreadableFileError(run_folder / SUMMARY_FILE, reason)
    source = run_folder / ("best" if is_best else "model")
    if is_best and not source.is_dir() and is_kept(run_folder):
        write_kept(run_folder, console)
    if source.is_dir() and (is_best or run.summary):
        return run, source
    if run.summary is None:
        instead = (
            "; --best gives its best model so far" if (run_folder / "best").is_dir() or is_kept(run_folder) else ""
        )
        raise ValueError(f"{run_folder}: the run has not finished: it has no summary.json{instead}")
    if is_best:
        last = run_folder / "model"
        instead = f"; the model of the last step is {last}" if last.is_dir() else ""
        raise ValueError(f"{run_folder}: there is no best/: {no_best_reason(run, run.summary)}{instead}")
    raise ValueError(f"{source}: there is no such model; the run was set to keep none, like the runs of a search")


def _base_of(run: RunFolder, source: Path, kind: Kind) -> str:
    if kind == "adapter":  # of a run that started from another run's model it belongs to that model
        named = read_object(source / "adapter" / "adapter_config.json")
        return str(named["base_model_name_or_path"])
    return str(run.setting("model", "path"))


def _copy_files(source: Path, target: Path, *patterns: str) -> None:
    for path in {path for pattern in patterns for path in source.glob(pattern) if path.is_file()}:
        shutil.copyfile(path, target / path.name)


def _fill(source: Path, target: Path, kind: Kind) -> None:
    """Write the files and read them back: plain transformers must find every key and the same tensors."""
    from workers.export.verification import check_adapter, check_finite, check_tensors, fingerprints, load_plain

    if kind == "adapter":
        shutil.copytree(source / "adapter", target, dirs_exist_ok=True)
        _copy_files(source, target, "token*", "chat_template*", "special_tokens*")
        check_adapter(target)
        return
    _copy_files(source, target, "*")
    if kind == "merged":
        check_finite(load_plain(target).state_dict())
        return
    model = load_plain(source, dtype="bfloat16")
    tensors = model.state_dict()
    check_finite(tensors)
    expected = fingerprints(tensors.items())
    for path in target.glob("*.safetensors*"):
        path.unlink()
    model.save_pretrained(target)
    del model, tensors  # one model at a time
    check_tensors(load_plain(target), expected)


def model_card(run: RunFolder, kind: Kind, is_best: bool, base: str) -> str:
    """README.md of an exported model of a run, in Markdown.

    `base` is the base model, as named by `model.path` or by the adapter's configuration.
    """
    result = summarise(run)
    environment = Environment(loader=PackageLoader("orchestrator.export", "."), undefined=StrictUndefined)
    environment.filters |= {"plain": _plain, **_FILTERS}
    return environment.get_template("card.jinja").render(
        kind=kind,
        is_best=is_best,
        is_cut_off=run.summary is None,
        result=result,
        name=_plain(run.name),
        base=_plain(base_name(base)),
        base_is_public=is_hub_name(base),
        strategy=run.setting("training", "strategy", "type"),
        num_trained=sum(1 for domain in result.domains.values() if domain.rows_seen),
        rows_seen=sum(domain.rows_seen or 0 for domain in result.domains.values()),
        unit=run.setting("mixing", "unit"),
        best=result.best.step if is_best and result.best else None,
        harm=verdict_sentence(run, result) if result.verdict in HARMFUL and not is_best else "",
        benchmarks=[score for score in asked_for(run.tasks) if score.model == ("best" if is_best else "model")],
        changes=[version for version in run.weights if version.reason == "operator"],
        settings=[(".".join(key), run.setting(*key)) for key in _SETTINGS],
    )


def _plain(value: object) -> str:
    """The value in one line, with Markdown's special characters escaped."""
    text = printable(value)
    return "".join(f"\\{letter}" if letter in "\\`*[]<>|" else letter for letter in text)
