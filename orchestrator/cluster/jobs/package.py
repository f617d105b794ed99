"""The folder that is sent with a job: the configuration, and the files that it names by relative paths."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from orchestrator.cluster.jobs.folders import choose_data_files, choose_model_files, refuse_whole_place
from orchestrator.config.errors import ConfigError, format_path
from orchestrator.config.sweep import SweepConfig
from workers.data.locations import files_to_carry

CONFIG_NAME = "config.yaml"
MAX_BYTES = 400 * 2**20  # Ray accepts packages of up to 500 MiB
_UP = "up"  # stands for ".." in the folder that is sent

KeyPath = tuple[str | int, ...]

_ON_THE_CLUSTER: tuple[KeyPath, ...] = (("output_dir",), ("data", "cache_dir"), ("start", "run"))


def write_package(config: SweepConfig, folder: Path) -> list[str]:
    """Fill an empty folder with what a job needs: `config.yaml` and every file that it names.

    Returns:
        A line for each folder of which some files are not sent.

    Raises:
        ConfigError: a file is missing, or a path must be absolute because the cluster reads or writes there.
        ValueError: the files are larger than a job may be.
    """
    data = config.model_dump()
    faults = [
        f"{format_path(key)}: {path} is relative; give the absolute path of a folder that all nodes share"
        for key, path in _paths(data)
        if key in _ON_THE_CLUSTER and not path.is_absolute()
    ]
    travelling = {key: path for key, path in _paths(data) if key not in _ON_THE_CLUSTER and not path.is_absolute()}
    faults += [
        fault
        for key, path in _paths(data)
        if path.is_dir() and key not in _ON_THE_CLUSTER and (fault := refuse_whole_place(format_path(key), path))
    ]
    if faults:
        raise ConfigError(faults)
    files, notes = _choose(travelling)
    num_bytes = sum(file.stat().st_size for file in files.values())
    if num_bytes > MAX_BYTES:
        raise ValueError(
            f"{num_bytes / 2**20:,.0f} MiB of files would be sent with the job, but the limit is "
            f"{MAX_BYTES / 2**20:,.0f} MiB; put them on storage that the cluster shares and name them by absolute paths"
        )
    for path, source in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    inside = _replace(data, lambda key, path: _inside(path) if key in travelling else path)
    # The job's driver is already in the cluster, and the runtime environment applies to the job.
    inside["cluster"] |= {"address": "auto", "runtime_env": {}}
    plain = SweepConfig.model_validate(inside).model_dump(mode="json")
    (folder / CONFIG_NAME).write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return notes


def _choose(travelling: Mapping[KeyPath, Path]) -> tuple[dict[Path, Path], list[str]]:
    """Path inside the package -> its source file; and a line for each folder of which some files are not sent.

    ConfigError if a path is missing or has nothing that could be used.
    """
    files: dict[Path, Path] = {}
    notes: list[str] = []
    faults: list[str] = []
    for key, path in travelling.items():
        try:
            chosen, note = _choose_one(key, path)
        except ValueError as error:
            faults.append(f"{format_path(key)}: {error}")
            continue
        files |= {_inside(file): source for file, source in chosen.items()}
        if note and note not in notes:
            notes.append(note)
    if faults:
        raise ConfigError(faults)
    return files, notes


def _choose_one(key: KeyPath, path: Path) -> tuple[dict[Path, Path], str | None]:
    """The same for one path; ValueError if it is missing or has nothing that could be used."""
    if "domains" in key and key[-2] in ("train", "eval"):
        try:
            return {file: file for file in files_to_carry(path)}, None
        except ValueError as error:
            raise ValueError(f"{error}; if it is on the cluster, give its absolute path there") from None
    if not path.exists():
        raise ValueError(
            f"{path}: no such file (looked in {Path.cwd()}); check the path, or give the absolute path of the file on "
            "the cluster"
        )
    if not path.is_dir():
        return {path: path}, None
    is_model = key[-2:] == ("model", "path")
    choice = choose_model_files(path) if is_model else choose_data_files(path)
    if is_model and Path("config.json") not in choice.files:
        raise ValueError(f"{path} has no config.json, so it is not a Hugging Face model folder")
    if not choice.files:
        raise ValueError(f"{path} has no files of a data set; give another folder")
    return {path / inside: source for inside, source in choice.files.items()}, choice.describe_left(path)


def _paths(data: Any, key: KeyPath = ()) -> Iterator[tuple[KeyPath, Path]]:
    """Every local path of a configuration; a model's or data set's name is one if a local folder has that name."""
    if isinstance(data, Path):
        yield key, data
    elif isinstance(data, str) and key[-1:] == ("path",) and Path(data).is_dir():
        yield key, Path(data)
    elif isinstance(data, dict):
        for name, value in data.items():
            yield from _paths(value, (*key, name))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _paths(value, (*key, index))


def _replace(data: Any, change: Callable[[KeyPath, Path], Path], key: KeyPath = ()) -> Any:
    if isinstance(data, dict):
        return {name: _replace(value, change, (*key, name)) for name, value in data.items()}
    if isinstance(data, list):
        return [_replace(value, change, (*key, index)) for index, value in enumerate(data)]
    if isinstance(data, str | Path) and dict(_paths(data, key)):
        return type(data)(change(key, Path(data))) if isinstance(data, str) else change(key, data)
    return data


def _inside(path: Path) -> Path:
    return Path(*(_UP if part == ".." else part for part in path.parts))
