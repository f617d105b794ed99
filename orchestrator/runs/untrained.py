"""Whether a run's folder has anything that was trained, and how to reset it if not.

The files that preparation and the start of the workers leave behind are listed here. Anything else counts as trained,
so that a folder is reset only if nothing can be lost.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.config.stages import StageConfig

# Derived from the configuration that the folder was started with: another one must not find them.
_OF_THE_CONFIGURATION = {
    "config.json",
    "data.json",
    "distribution.html",
    "distribution.json",
    "events.jsonl",
    "failure.json",
    "importance.json",
    "importance.safetensors",
    "isolation.json",
    "metrics.jsonl",
    "mixing.jsonl",
    "reference-progress.json",
    "reference.json",
    "report.html",
}
# The driver's lock, the log, and the attempt number, by which workers of earlier attempts are still rejected.
_STAYING = {".driver.lock", "attempt.json", "raymix.log"}
_FOLDERS = {"weights", "feedback", "evaluations", "requests", "checkpoints"}
_FIRST_VERSION = Path("weights") / "000000.json"
_OF_RAY = (".ray-train-", ".ray-tune-")


def has_trained(folder: Path, stages: Sequence[StageConfig] = ()) -> bool:
    """Whether a run's folder has a step, an evaluation, a checkpoint, or any other file not from its preparation.

    `stages` are those of the plan that it was started with, whose folders are checked as well.
    """
    folders = (folder, *_stage_folders(folder.parent / "stages", stages))
    return any(_is_of_training(entry) for each in folders for entry in each.iterdir())


def give_back(folder: Path) -> None:
    """Remove what an untrained run left in its folder, except its lock, log and attempt number."""
    for entry in folder.iterdir():
        if entry.name in _OF_THE_CONFIGURATION:
            entry.unlink()
        elif entry.name in _FOLDERS or entry.name.startswith(_OF_RAY):
            shutil.rmtree(entry)


def _is_of_training(entry: Path) -> bool:
    name = entry.name
    if name == "metrics.jsonl":
        return entry.stat().st_size > 0
    if name in _FOLDERS:
        return any(path.relative_to(entry.parent) != _FIRST_VERSION for path in entry.rglob("*"))
    return name not in _OF_THE_CONFIGURATION | _STAYING and not name.startswith(_OF_RAY)


def _stage_folders(place: Path, stages: Sequence[StageConfig]) -> Iterator[Path]:
    for stage in stages:
        yield from (path for path in place.glob(f"{stage.name}-*") if path.is_dir())
