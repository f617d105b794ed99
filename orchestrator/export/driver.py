"""`raymix export`: copy or convert a run's result and write its card, all or nothing."""

import json
import shutil
from pathlib import Path
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console
from rich.text import Text

from orchestrator.controller.operator import describe_change
from orchestrator.runs.benchmark_record import asked_for
from orchestrator.runs.folder import RunFolder, read_run
from orchestrator.runs.records import RunSummary
from orchestrator.runs.summary import summarise
from orchestrator.views.console import redirect_output
from orchestrator.views.format import NOTHING, format_loss, format_score, format_score_change, format_share, printable
from orchestrator.views.summary import HARMFUL, no_best_reason, verdict_lines, verdict_sentence
from workers.durable import commit_folder, temporary_folder
from workers.model.base_name import base_name, is_hub_name

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
_LOADING = {
    "transformers": (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("{name}")\n'
        'tokenizer = AutoTokenizer.from_pretrained("{name}")'
    ),
    "peft": (
        "from peft import AutoPeftModelForCausalLM\n\n"
        'model = AutoPeftModelForCausalLM.from_pretrained("{name}")  # loads the base model too'
    ),
}


def export(run_folder: Path, output: Path, kind: Kind, is_best: bool, console: Console) -> None:
    """Write the model of a finished run to a new folder, with its tokenizer and a model card.

    Args:
        output: folder to write; it must not exist.
        kind: `merged`, exactly as trained; `bf16`; or the LoRA `adapter` alone.
        is_best: use the model of the best evaluation instead of the last step.

    Raises:
        ValueError: there is no such result, or the output folder already exists.
        ExportError: the result does not load completely, is not finite, or differs from the source; no files remain.
    """
    run, source = find_result(run_folder, is_best)
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


def find_result(run_folder: Path, is_best: bool) -> tuple[RunFolder, Path]:
    """A finished run and the folder of its model; ValueError if it has not finished, or has no such model."""
    run = read_run(run_folder)
    if run.summary is None:
        raise ValueError(f"{run_folder}: no summary.json; give the folder of a run that has finished")
    source = run_folder / ("best" if is_best else "model")
    if not source.is_dir():
        if is_best:
            last = run_folder / "model"
            instead = f"; the model of the last step is {last}" if last.is_dir() else ""
            raise ValueError(f"{run_folder}: there is no best/: {no_best_reason(run, run.summary)}{instead}")
        raise ValueError(f"{source}: there is no such model; the run was set to keep none, like the runs of a search")
    return run, source


def _base_of(run: RunFolder, source: Path, kind: Kind) -> str:
    if kind == "adapter":  # of a run that started from another run's model it belongs to that model
        named = json.loads((source / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
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
    """README.md of an exported model, in Markdown.

    Args:
        run: a finished run, refreshed.
        kind: which weights the folder holds.
        is_best: whether they are those of the best evaluation, not of the last step.
        base: the base model, as named by `model.path` or by the adapter's configuration.
    """
    result = summarise(run)
    library = "peft" if kind == "adapter" else "transformers"
    environment = Environment(loader=PackageLoader("orchestrator.export", "."), undefined=StrictUndefined)
    return environment.get_template("card.jinja").render(
        library=library,
        name=_plain(run.name),
        base=_plain(base_name(base)),
        base_is_public=is_hub_name(base),
        strategy=_plain(run.setting("training", "strategy", "type")),
        num_trained=sum(1 for domain in result.domains.values() if domain.rows_seen),
        algorithm=_plain(result.mixing_type),
        moved=result.weights_versions > 1,
        steps=f"{result.steps:,}",
        tokens=f"{result.num_tokens:,}",
        unit=run.setting("mixing", "unit"),
        rows=_domain_rows(result, is_best),
        best=result.best.step if is_best and result.best else None,
        harm=_plain(verdict_sentence(run, result)) if result.verdict in HARMFUL and not is_best else "",
        benchmarks=_benchmark_rows(run, "best" if is_best else "model"),
        converted=kind == "bf16",
        changes=[
            {"effective_step": version.effective_step, "text": _plain(describe_change(version))}
            for version in run.weights
            if version.reason == "operator"
        ],
        settings=[(".".join(key), _plain(run.setting(*key))) for key in _SETTINGS],
        loading=_LOADING[library].format(name=_plain(run.name)),
    )


def _domain_rows(result: RunSummary, is_best: bool) -> list[list[str]]:
    total = sum(domain.rows_seen or 0 for domain in result.domains.values())
    rows = []
    for name, domain in result.domains.items():
        seen, loss = domain.rows_seen or 0, domain.loss_nats_best if is_best else domain.loss_nats_end
        rows.append(
            [
                _plain(name),
                f"{seen:,}" if seen else "only measured",
                format_share(seen / total) if total else NOTHING,
                NOTHING if domain.epochs is None else f"{domain.epochs:.2f}",
                *map(format_share, (domain.share_initial, domain.share_mean, domain.share_final)),
                format_loss(domain.loss_nats_start),
                format_loss(loss),
            ]
        )
    return rows


def _benchmark_rows(run: RunFolder, model: str) -> list[list[str]]:
    return [
        [
            _plain(score.task),
            NOTHING
            if score.num_samples is None
            else f"{score.num_samples:,}" + (f" (the first {score.limit:,} of each task)" if score.limit else ""),
            NOTHING if score.num_fewshot is None else f"{score.num_fewshot}",
            _plain(metric) + (", in the chat template" if score.chat else ""),
            format_score(values.base),
            format_score(values.result),
            format_score_change(values),
        ]
        for score in asked_for(run.tasks)
        if score.model == model
        for metric, values in score.metrics.items()
    ]


def _plain(value: object) -> str:
    """The value in one line, with Markdown's special characters escaped."""
    text = printable(value)
    return "".join(f"\\{letter}" if letter in "\\`*[]<>|" else letter for letter in text)
