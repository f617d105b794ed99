"""Where a run's weights come from when it starts from another run.

With the same strategy both runs train the same parameters: the float32 master weights of the earlier run are taken
over, on top of the model that it started from. With another strategy (say LoRA after full fine-tuning) the run starts
from the earlier run's exported model. Base model, tokenizer and chat template are always those of the run itself.
"""

from pathlib import Path

from orchestrator.config.run import RunConfig
from orchestrator.config.sweep import read_begun
from orchestrator.runs.folder import is_finished
from workers.config.model import ModelConfig
from workers.training.plan import StartPoint


def find_start(config: RunConfig) -> StartPoint | None:
    """Where `start` points, with absolute paths; None for the base model.

    ValueError if the run that it names is not finished, has another base model, or has nothing to start from.
    """
    if config.start is None:
        return None
    folder = config.start.run.expanduser().resolve()
    earlier = _read_finished(folder)
    if earlier.model.with_absolute_paths() != config.model.with_absolute_paths():
        raise ValueError(
            f"start.run: {folder} has the base model {earlier.model.path} ({earlier.model.dtype}), but this run has "
            f"{config.model.path} ({config.model.dtype}); use the same `model`, or {folder / 'model'} as model.path"
        )
    if earlier.training.strategy != config.training.strategy:
        if config.start.optimizer == "kept":
            raise ValueError(f"start.optimizer: {folder} trained other parameters (its strategy differs); use fresh")
        return StartPoint(model=_exported(folder, config.model))
    before = find_start(earlier)
    return StartPoint(
        model=before.model if before else config.model.with_absolute_paths(),
        checkpoint=_last_checkpoint(folder),
        keeps_optimizer=config.start.optimizer == "kept",
    )


def _read_finished(folder: Path) -> RunConfig:
    if not is_finished(folder):
        what = "is not finished" if (folder / "config.json").exists() else "is not the folder of a run"
        raise ValueError(f"start.run: {folder} {what}; name a run that has a summary.json")
    return read_begun(folder)


def _exported(folder: Path, base: ModelConfig) -> ModelConfig:
    if not (folder / "model" / "config.json").exists():
        raise ValueError(f"start.run: {folder} has no model/, which another strategy has to start from; run it again")
    return base.with_absolute_paths().replaced(path=str(folder / "model"), revision=None)


def _last_checkpoint(folder: Path) -> Path:
    from workers.engine.checkpoint import latest_checkpoint  # imports torch

    faults: list[str] = []
    checkpoint = latest_checkpoint(folder / "checkpoints", faults.append)
    if checkpoint is None or faults:
        why = "; ".join(faults) or "it has none"
        raise ValueError(
            f"start.run: the last checkpoint of {folder} is missing ({why}); delete that folder and train it again"
        )
    return checkpoint
