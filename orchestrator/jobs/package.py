"""The folder that travels with a job: the configuration, and the files that it names by relative paths."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from orchestrator.config import RunConfig
from orchestrator.config_errors import ConfigError, format_path

CONFIG_NAME = "config.yaml"
MAX_BYTES = 400 * 2**20  # Ray takes packages of 500 MiB
_UP = "up"  # stands for ".." in the folder that travels

KeyPath = tuple[str | int, ...]

_ON_THE_CLUSTER: tuple[KeyPath, ...] = (("output_dir",), ("data", "cache_dir"), ("start", "run"))


def write_package(config: RunConfig, folder: Path) -> None:
    """Fill an empty folder with what a job needs: `config.yaml` and every file that it names.

    Raises:
        ConfigError: a file is missing, or a path has to be absolute, since the cluster writes or looks there.
        ValueError: there is more than a job may carry.
    """
    data = config.model_dump()
    faults = [
        f"{format_path(key)}: {path} is relative; a job needs the absolute path of a folder that all nodes share"
        for key, path in _paths(data)
        if key in _ON_THE_CLUSTER and not path.is_absolute()
    ]
    travelling = {key: path for key, path in _paths(data) if key not in _ON_THE_CLUSTER and not path.is_absolute()}
    faults += [
        f"{format_path(key)}: {path}: no such file (looked in {Path.cwd()}); mend the path, or give the absolute path "
        "that it has on the cluster"
        for key, path in travelling.items()
        if not path.exists()
    ]
    if faults:
        raise ConfigError(faults)
    num_bytes = sum(file.stat().st_size for path in set(travelling.values()) for file in _files(path))
    if num_bytes > MAX_BYTES:
        raise ValueError(
            f"{num_bytes / 2**20:,.0f} MiB of files would travel with the job, and {MAX_BYTES / 2**20:,.0f} are the "
            "limit; put them on storage that the cluster shares and name them by absolute paths"
        )
    for path in set(travelling.values()):
        target = folder / _inside(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, target)
    inside = _replace(data, lambda key, path: _inside(path) if key in travelling else path)
    # The job's driver is in the cluster already, and the runtime environment is the job's.
    inside["cluster"] |= {"address": "auto", "runtime_env": {}}
    plain = RunConfig.model_validate(inside).model_dump(mode="json")
    (folder / CONFIG_NAME).write_text(yaml.safe_dump(plain, sort_keys=False))


def _paths(data: Any, key: KeyPath = ()) -> Iterator[tuple[KeyPath, Path]]:
    """Every local path of a configuration; a model's or data set's name is one where such a folder is here."""
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


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
