"""What can be seen of the files that a configuration names, without reading them through."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from orchestrator.config import RunConfig
from orchestrator.config_errors import Fault, KeyPath
from orchestrator.mixing.base import check_domains
from workers.data.files import BadRow, Shard, read_rows


def missing_files(config: RunConfig) -> list[Fault]:
    """One fault for every file that is missing, empty or of another kind than it should be."""
    return [
        *_domain_files(config),
        *_model_folder(config),
        *_plain_file(("model", "chat_template"), config.model.chat_template),
        *_plain_file(("training", "deepspeed", "config"), config.training.deepspeed.config),
        *_reference_file(config),
    ]


def _domain_files(config: RunConfig) -> Iterator[Fault]:
    for name, domain in config.domains.items():
        for part, paths in (("train", domain.train), ("eval", domain.eval)):
            for i, path in enumerate(paths):
                key: KeyPath = ("domains", name, part, i)
                faults = list(_plain_file(key, path))
                yield from faults or _file_of_rows(key, path)


def _file_of_rows(key: KeyPath, path: Path) -> Iterator[Fault]:
    """Of a kind that can be read, and with more in it than one bad row, which may stand for the whole file."""
    try:
        match list(islice(read_rows(path, Shard(index=0, count=1)), 2)):
            case [BadRow(reason=reason)]:
                yield key, f"{path}: holds no row: {reason}; give a file with rows or leave it out"
    except ValueError as error:
        yield key, str(error)


def _plain_file(key: KeyPath, path: Path | None) -> Iterator[Fault]:
    if path is None:
        return
    if not path.exists():
        where = "" if path.is_absolute() else f" (looked in {Path.cwd()})"
        yield key, f"{path}: no such file{where}; mend the path"
    elif not path.is_file():
        yield key, f"{path}: is not a file; name files, not folders"
    elif path.stat().st_size == 0:
        yield key, f"{path}: is empty; give a file with rows or leave it out"


def _model_folder(config: RunConfig) -> Iterator[Fault]:
    path = Path(config.model.path)
    if path.is_dir():
        if not (path / "config.json").exists():
            yield ("model", "path"), f"{path}: has no config.json; give a folder that from_pretrained can load"
    elif config.model.path.startswith((".", "~", "/")) or len(path.parts) > 2:
        yield ("model", "path"), f"{path}: no such folder (looked in {Path.cwd()}); mend the path or give a hub name"


def _reference_file(config: RunConfig) -> Iterator[Fault]:
    path = getattr(config.mixing, "reference", None)
    if not isinstance(path, Path):
        return
    key: KeyPath = ("mixing", "reference")
    if faults := list(_plain_file(key, path)):
        yield from faults
        return
    try:
        losses = json.loads(path.read_text())["loss_nats"]
        check_domains(str(path), losses, config.trained_domains)
    except (ValueError, KeyError, TypeError) as error:
        yield key, f"{path}: not a file that `raymix reference` wrote: {error}"
