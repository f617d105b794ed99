"""Whose folder it is: one driver at a time, and one configuration for good, once something was trained with it."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from filelock import FileLock, Timeout

from orchestrator.config.run import RunConfig
from orchestrator.runs.untrained import give_back, has_trained
from workers.durable import write_durably
from workers.events import note_event

# What may differ when a run goes on: where it runs, what is kept and shown, not what is computed.
_FREE_KEYS = {
    ("cluster",),
    ("coarse_search",),
    ("detection",),
    ("output_dir",),
    ("reference",),
    ("compare",),
    ("search",),
    ("study",),
    ("tracking",),
    ("data", "cache_dir"),
    ("data", "log_samples"),
    ("training", "checkpoint_every"),
    ("training", "keep_checkpoints"),
}


class ClaimError(RuntimeError):
    """The run's folder belongs to another driver or another configuration."""


class FolderInUseError(ClaimError):
    """The run's folder belongs to another driver."""


@contextmanager
def claim_folder(config: RunConfig) -> Iterator[str]:
    """Hold the run's folder and yield the run's id.

    Raises:
        FolderInUseError: another driver holds it.
        ClaimError: something was trained there with another configuration. Where nothing was, as after a run that was
            refused in its preparation, the folder is begun anew.
    """
    config.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(config.folder / ".driver.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderInUseError(
            f"{config.folder}: another process is running this run; stop it or use another name"
        ) from None
    try:
        _compare_with_begun(config)
        identity = f"{config.folder.resolve()}\n{json.dumps(bound_settings(config), sort_keys=True)}"
        yield f"{config.name}-{hashlib.blake2b(identity.encode(), digest_size=6).hexdigest()}"
    finally:
        lock.release()


def _compare_with_begun(config: RunConfig) -> None:
    path = config.folder / "config.json"
    if path.exists():
        begun = RunConfig.model_validate_json(path.read_bytes())
        before, now = dict(_flatten(bound_settings(begun))), dict(_flatten(bound_settings(config)))
        changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
        # The folder says where it is, whatever name it had when it was begun.
        begun_here = begun.model_copy(update={"name": config.name, "output_dir": config.output_dir})
        lines = [f"{key}: was {before.get(key)!r}, is {now.get(key)!r}" for key in changed]
        if changed and has_trained(begun_here):
            raise ClaimError(
                f"{config.folder} was begun with another configuration; use another name, "
                "or put these keys back to go on:\n" + "\n".join(f"  {line}" for line in lines)
            )
        if changed:
            give_back(config.folder)
            what = "; ".join(lines)
            note_event(config.folder, 0, "begun_anew", f"nothing was trained with the settings before: {what}")
    write_durably(path, config.model_dump_json(indent=1).encode())


def bound_settings(config: RunConfig) -> dict[str, Any]:
    """The configuration without what may differ when a run goes on, as plain data."""
    data = config.model_dump(mode="json")
    for *parents, last in _FREE_KEYS:
        group = data
        for parent in parents:
            group = group[parent]
        group.pop(last)
    data["order of domains"] = list(config.domains)  # the order inside a batch follows it
    return data


def _flatten(data: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _flatten(value, f"{path}.{key}" if path else key)
    else:
        yield path, data
