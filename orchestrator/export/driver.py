"""`raymix export`: copy or convert a run's result, write its card, all or nothing."""

import shutil
from pathlib import Path

from rich.console import Console

from orchestrator.export.card import Kind, model_card
from orchestrator.quiet import chatter_to
from orchestrator.run_folder import RunFolder
from workers.config import ModelConfig
from workers.durable import commit_folder, temporary_folder


def export(run_folder: Path, output: Path, kind: Kind, is_best: bool, console: Console) -> None:
    """Write the model of a finished run to a new folder, with its tokenizer and its card.

    Args:
        run_folder: the run.
        output: folder to write; it must not exist.
        kind: `merged` as it was trained, to the bit; `bf16`; or a LoRA `adapter` alone.
        is_best: the model of the best evaluation, in place of the last step's.
        console: where to say what was written.

    Raises:
        ValueError: there is no such result, or the folder is there already.
    """
    run, source = find_result(run_folder, is_best)
    if output.exists():
        raise ValueError(f"{output} is there already; name a new folder")
    adapter = source / "adapter"
    if kind == "adapter" and not adapter.is_dir():
        strategy = run.setting("training", "strategy", "type")
        raise ValueError(f"{source} holds no adapter: the run's strategy is {strategy}, not lora")
    temporary = temporary_folder(output.resolve())
    if kind == "adapter":
        shutil.copytree(adapter, temporary, dirs_exist_ok=True)
        _copy_files(source, temporary, "token*", "chat_template*", "special_tokens*")
    else:
        _copy_files(source, temporary, "*")
    if kind == "bf16":
        with chatter_to(run_folder / "raymix.log"):
            _convert_to_bfloat16(source, temporary)
    (temporary / "README.md").write_text(model_card(run, kind, is_best), encoding="utf-8")
    commit_folder(temporary, output.resolve())
    size = sum(file.stat().st_size for file in output.iterdir())
    console.print(f"{output}: {kind}, {size / 2**20:,.1f} MiB, with a model card", markup=False, highlight=False)


def find_result(run_folder: Path, is_best: bool) -> tuple[RunFolder, Path]:
    """A finished run, and the folder of the model that it left.

    Raises:
        ValueError: it has not finished, or has kept no such model.
    """
    run = RunFolder(run_folder)
    run.refresh()
    if run.summary is None:
        raise ValueError(f"{run_folder}: no summary.json; give the folder of a run that has finished")
    source = run_folder / ("best" if is_best else "model")
    if not source.is_dir():
        raise ValueError(f"{source}: there is no such model; was the run made to keep one (evaluation.best)?")
    return run, source


def _copy_files(source: Path, target: Path, *patterns: str) -> None:
    """Plain files of the folder, not the folders in it."""
    for path in {path for pattern in patterns for path in source.glob(pattern) if path.is_file()}:
        shutil.copyfile(path, target / path.name)


def _convert_to_bfloat16(source: Path, target: Path) -> None:
    from workers.model import load_model

    for path in target.glob("*.safetensors*"):
        path.unlink()
    model = load_model(ModelConfig(path=str(source), dtype="bfloat16"))
    model.config.use_cache = True  # which loading for training turns off
    model.save_pretrained(target)
