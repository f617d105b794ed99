"""Lock a run folder to one driver at a time and, once something was trained, to one configuration permanently.

The files that preparation and the start of the workers leave behind are listed here. Anything else counts as trained,
so that a folder is reset only if nothing can be lost.
"""

import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from orchestrator.config.plan import PlanConfig
from orchestrator.config.run import RunConfig
from orchestrator.config.stages import StageConfig
from orchestrator.config.sweep import read_begun
from workers.durable import remove, remove_folder, teller, write_durably
from workers.events import log_event
from workers.fingerprint import fingerprint_bytes
from workers.storage.addresses import shown, uri_of
from workers.storage.client import print_line
from workers.storage.lease import LeaseHeldError, leased
from workers.storage.run_copy import DRIVER_LOCK, following, restore

# What may differ when a run resumes: where it runs, what is kept and shown, but not what is computed.
_FREE_KEYS = {
    ("cluster",),
    ("detection",),
    ("output_dir",),
    ("reference",),
    ("tracking",),
    ("data", "cache_dir"),
    ("data", "log_samples"),
    ("training", "checkpoint_every"),
    ("training", "keep_checkpoints"),
    ("training", "sequence_parallel"),
}
LOCK_FILE = DRIVER_LOCK
_LOOK_EVERY_SECONDS = 1.0
_OWN_KEYS = set(PlanConfig.model_fields)  # without the sections of verbs that train many runs

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


class ClaimError(RuntimeError):
    """The run's folder belongs to another driver or another configuration."""


class FolderInUseError(ClaimError):
    """Another driver holds the run's folder."""


@contextmanager
def hold(lock: Path, refusal: str | None) -> Iterator[bool]:
    """Hold a lock file, creating its folder; on object storage its lease, too (`workers.storage.lease`).

    Yields whether nobody worked on another copy of the folder since this node's was made: True for an ordinary folder.

    If another process holds it, raise FolderInUseError with `refusal`; if that is None, wait.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = FileLock(lock)
    try:
        file.acquire(timeout=-1 if refusal is None else 0, poll_interval=_LOOK_EVERY_SECONDS)
    except Timeout:
        raise FolderInUseError(refusal) from None
    try:
        with leased(lock, refusal is None, _end_here, teller(lock)) as is_newest:
            yield is_newest
    except LeaseHeldError as error:
        raise FolderInUseError(str(error)) from None
    finally:
        file.release()


def _end_here(message: str) -> None:
    """End this process as a job manager would."""
    print_line(message)
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def claim_folder(config: RunConfig, *, waits: bool = False) -> Iterator[str]:
    """Hold the run's folder and yield the run's id.

    FolderInUseError if another driver holds it, unless `waits`. ClaimError if something was trained there with another
    configuration; if nothing was, as after a run that failed in its preparation, the folder is reset.
    """
    folder = config.folder
    refusal = f"{shown(folder)}: another process is already training this run; stop it or use another name"
    with hold_run(folder, None if waits else refusal):
        _compare_with_begun(config)
        identity = f"{uri_of(folder) or folder.resolve()}\n{json.dumps(bound_settings(config), sort_keys=True)}"
        yield f"{config.name}-{fingerprint_bytes(identity.encode())}"


@contextmanager
def hold_run(folder: Path, refusal: str | None) -> Iterator[None]:
    """Hold the folder of a run; on object storage, keep it and this node's copy alike meanwhile. As `hold`."""
    with hold(folder / LOCK_FILE, refusal) as is_newest:
        tell = teller(folder / LOCK_FILE)
        restore(folder, is_newest=is_newest, tell=tell)
        with following(folder, tell):
            yield


def _compare_with_begun(config: RunConfig) -> None:
    path = config.folder / "config.json"
    if path.exists():
        begun = read_begun(config.folder)
        before, now = dict(flatten(bound_settings(begun))), dict(flatten(bound_settings(config)))
        changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        lines = [f"{key}: was {_given(before, key)}, is {_given(now, key)}" for key in changed]
        if changed and has_trained(config.folder, begun.stage_list):
            raise ClaimError(
                f"{shown(config.folder)} was started with another configuration; use another name, "
                "or restore these keys to resume:\n" + "\n".join(f"  {line}" for line in lines)
            )
        if changed:
            give_back(config.folder)
            what = "; ".join(lines)
            log_event(config.folder, 0, "begun_anew", f"nothing was trained with the earlier settings: {what}")
    write_durably(path, config.model_dump_json(indent=1, include=_OWN_KEYS).encode())


def _given(settings: dict[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else "not given"


def bound_settings(config: RunConfig) -> dict[str, Any]:
    """The configuration without what may differ when a run resumes, as plain data."""
    data = {"stages": []} | config.model_dump(mode="json", include=_OWN_KEYS)  # a single training has no stages
    for *parents, last in _FREE_KEYS:
        group = data
        for parent in parents:
            group = group[parent]
        group.pop(last)
    data["order of domains"] = list(config.domains)  # the order within a batch follows it
    return data


def flatten(data: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys, as in `--set`, and their values."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from flatten(value, f"{path}.{key}" if path else key)
    else:
        yield path, data


def has_trained(folder: Path, stages: Sequence[StageConfig] = ()) -> bool:
    """Whether a run's folder has a step, an evaluation, a checkpoint, or any other file not from its preparation.

    `stages` are those of the plan that it was started with, whose folders are checked as well.
    """
    of_stages = [path for stage in stages for path in (folder.parent / "stages").glob(f"{stage.name}-*")]
    folders = [folder, *filter(Path.is_dir, of_stages)]
    return any(_is_of_training(entry) for each in folders for entry in each.iterdir())


def give_back(folder: Path) -> None:
    """Remove what an untrained run left in its folder, except its lock, log and attempt number."""
    for entry in folder.iterdir():
        if entry.name in _OF_THE_CONFIGURATION:
            remove(entry)
        elif entry.name in _FOLDERS:
            remove_folder(entry)
        elif entry.name.startswith(_OF_RAY):
            shutil.rmtree(entry)


def _is_of_training(entry: Path) -> bool:
    name = entry.name
    if name == "metrics.jsonl":
        return entry.stat().st_size > 0
    if name in _FOLDERS:
        return any(path.relative_to(entry.parent) != _FIRST_VERSION for path in entry.rglob("*"))
    return name not in _OF_THE_CONFIGURATION | _STAYING and not name.startswith(_OF_RAY)
