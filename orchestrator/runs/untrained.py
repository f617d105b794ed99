"""Whether a run's folder holds anything that was trained, and how it is given back where it does not.

What preparation and the start of the workers leave behind is listed here; whatever else is there counts as trained, so
that a folder is given up only where nothing can be lost.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.config.stages import StageConfig

# Made for the configuration that began the folder: another one must not find them.
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
# The lock that the driver holds, the log, and the number of the last attempt: workers of an earlier one stay refused.
_STAYING = {".driver.lock", "attempt.json", "raymix.log"}
_FOLDERS = {"weights", "feedback", "evaluations", "requests", "checkpoints"}
_FIRST_VERSION = Path("weights") / "000000.json"
_OF_RAY = (".ray-train-", ".ray-tune-")


def has_trained(folder: Path, stages: Sequence[StageConfig] = ()) -> bool:
    """Whether the folder of a run holds a step, an evaluation, a checkpoint, or anything that is not of its beginning.

    Args:
        folder: of the run.
        stages: those of the plan that it was begun with, whose folders are looked at as well.
    """
    return any(_holds_training(each) for each in (folder, *_stage_folders(folder.parent / "stages", stages)))


def give_back(folder: Path) -> None:
    """Remove what an untrained run has left in its folder, but for its lock, log and attempt number."""
    for entry in folder.iterdir():
        if entry.name in _OF_THE_CONFIGURATION:
            entry.unlink()
        elif entry.name in _FOLDERS or entry.name.startswith(_OF_RAY):
            shutil.rmtree(entry)


def _holds_training(folder: Path) -> bool:
    return any(_is_of_training(entry) for entry in folder.iterdir())


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
