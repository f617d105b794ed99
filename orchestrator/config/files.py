"""Checks of the files that a configuration names, without reading them completely."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from orchestrator.config.errors import Fault, KeyPath
from orchestrator.config.run import RunConfig
from orchestrator.config.tracking import missing_package
from workers.data.files import BadRow, Shard
from workers.data.locations import find_files
from workers.data.reading import read_rows
from workers.model.model_files import refuse_adapter
from workers.strategies.cofitune import CoFiTuneConfig, check_model


def missing_files(config: RunConfig) -> list[Fault]:
    """One fault for every file that is missing, empty or of the wrong kind, and every missing package."""
    return [
        *_domain_files(config),
        *_model_folder(config),
        *_plain_file(("model", "chat_template"), config.model.chat_template),
        *_plain_file(("training", "deepspeed", "config"), config.training.deepspeed.config),
        *_files_of_numbers(config),
        *_strategy(config),
        *_tracker_packages(config),
    ]


def _domain_files(config: RunConfig) -> Iterator[Fault]:
    for name, domain in config.domains.items():
        for part, paths in (("train", domain.train), ("eval", domain.eval)):
            for i, path in enumerate(paths):
                key: KeyPath = ("domains", name, part, i)
                try:
                    files = find_files(path).files
                except (ValueError, OSError) as error:
                    yield key, str(error)
                    continue
                for file in files:
                    yield from _file_of_rows(key, file, config.data.zstd_window_mib)


def _file_of_rows(key: KeyPath, path: Path, zstd_window_mib: int) -> Iterator[Fault]:
    """A file that has no rows, or is a single bad row: such a row usually means that the whole file is unreadable."""
    if path.stat().st_size == 0:
        yield key, f"{path}: is empty; give a file with rows or leave it out"
        return
    match list(islice(read_rows(path, Shard(), zstd_window_mib), 2)):
        case [BadRow(reason="the file is empty" as reason)]:
            yield key, f"{path}: has no rows: {reason}; give a file with rows or leave it out"
        case [BadRow(reason=reason)]:
            yield key, f"{path}: {reason}"


def left_aside(config: RunConfig) -> list[str]:
    """A sentence for every folder or pattern that also matches files of other kinds, which are not read."""
    return [
        f"domain {name!r}, {part}: {path}: {told}"
        for name, domain in config.domains.items()
        for part, paths in (("train", domain.train), ("eval", domain.eval))
        for path in paths
        if (told := find_files(path).told_ignored)
    ]


def _plain_file(key: KeyPath, path: Path | None) -> Iterator[Fault]:
    if path is None:
        return
    if not path.exists():
        where = "" if path.is_absolute() else f" (looked in {Path.cwd()})"
        yield key, f"{path}: no such file{where}; check the path"
    elif not path.is_file():
        yield key, f"{path}: is not a file; name files, not folders"
    elif path.stat().st_size == 0:
        yield key, f"{path}: is empty; give a file with rows or leave it out"


def _model_folder(config: RunConfig) -> Iterator[Fault]:
    path = Path(config.model.path)
    if path.is_dir():
        try:
            refuse_adapter(path)
        except ValueError as error:
            yield ("model", "path"), str(error).removeprefix("model.path: ")
            return
        if not (path / "config.json").exists():
            yield ("model", "path"), f"{path}: has no config.json; give a folder that from_pretrained can load"
    elif config.model.path.startswith((".", "~", "/")) or len(path.parts) > 2:
        yield ("model", "path"), f"{path}: no such folder (looked in {Path.cwd()}); check the path or give a hub name"


def _files_of_numbers(config: RunConfig) -> Iterator[Fault]:
    """Files of reference losses and shares must be valid and cover exactly the trained domains."""
    for file in config.mixing.files():
        key: KeyPath = ("mixing", file.key)
        if faults := list(_plain_file(key, file.path)):
            yield from faults
            continue
        try:
            file.check(config.trained_domains)
        except ValueError as error:
            yield key, str(error)


def _strategy(config: RunConfig) -> Iterator[Fault]:
    """CoFiTune's files must exist, and a local model must have the layers and modules that it names."""
    strategy = config.training.strategy
    if not isinstance(strategy, CoFiTuneConfig):
        return
    for i, path in enumerate(strategy.importance.files):
        yield from _plain_file(("training", "strategy", "importance", "files", i), path)
    try:
        model = json.loads((Path(config.model.path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a hub name, or a fault that another check reports
        return
    try:
        check_model(strategy, model)
    except ValueError as error:
        name, _, what = str(error).partition(": ")
        yield tuple(name.split(".")), what


def _tracker_packages(config: RunConfig) -> Iterator[Fault]:
    for i, tracker in enumerate(config.tracking):
        if what := missing_package(tracker):
            yield ("tracking", i), what
