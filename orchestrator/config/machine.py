"""Whether this machine has what a run names: files (not read completely), packages, a folder to write to, and GPUs, for
which Ray would wait forever.
"""

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from orchestrator.config.cluster import ClusterConfig
from orchestrator.config.errors import Fault, KeyPath
from orchestrator.config.run import RunConfig
from orchestrator.config.tracking import missing_package
from workers.data.files import BadRow, Shard
from workers.data.locations import find_files
from workers.data.reading import read_rows
from workers.model import liger
from workers.model.model_files import refuse_adapter
from workers.storage.addresses import shown, uri_of
from workers.storage.client import StorageError, check_writable, impatient
from workers.storage.data import bring_model
from workers.strategies.cofitune import CoFiTuneConfig, check_model
from workers.strategies.lora import quantised
from workers.strategies.lora.config import LoraStrategyConfig


def missing_files(config: RunConfig) -> list[Fault]:
    """One fault for every file that is missing, empty or of the wrong kind, and every missing package."""
    return [
        *_domain_files(config),
        *_model_folder(config),
        *_plain_file(("model", "chat_template"), config.model.chat_template),
        *_plain_file(("training", "deepspeed", "config"), config.training.deepspeed.config),
        *_files_of_numbers(config),
        *_strategy(config),
        *((("tracking", i), what) for i, each in enumerate(config.tracking) if (what := missing_package(each))),
        *_packages(config),
    ]


def _packages(config: RunConfig) -> Iterator[Fault]:
    """Optional packages of the training."""
    strategy = config.training.strategy
    if isinstance(strategy, LoraStrategyConfig) and strategy.use_qlora and (what := quantised.why_not()):
        yield ("training", "strategy", "use_qlora"), what
    if config.model.liger and (what := liger.why_not()):
        yield ("model", "liger"), what


def _domain_files(config: RunConfig) -> Iterator[Fault]:
    for name, domain in config.domains.items():
        for part, paths in (("train", domain.train), ("eval", domain.eval)):
            for i, path in enumerate(paths):
                key: KeyPath = ("domains", name, part, i)
                try:
                    with impatient():
                        files = find_files(path).files
                except (ValueError, OSError, StorageError) as error:
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
    try:
        with impatient():
            bring_model(config.model.path)
    except StorageError as error:
        yield ("model", "path"), str(error)
        return
    if path.is_dir():
        try:
            refuse_adapter(path)
        except ValueError as error:
            yield ("model", "path"), str(error).removeprefix("model.path: ")
            return
        if not (path / "config.json").exists():
            yield ("model", "path"), f"{path}: has no config.json; give a folder that from_pretrained can load"
    elif config.model.path.startswith((".", "~", "/")) or len(path.parts) > 2:
        where = "" if uri_of(path) else f" (looked in {Path.cwd()})"
        yield ("model", "path"), f"{shown(path)}: no such folder{where}; check the path or give a hub name"


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


def missing_gpus(config: RunConfig) -> list[Fault]:
    """A fault if the largest worker group of a local run, that of its references included, needs too many GPUs."""
    cluster = config.cluster
    if cluster.address != "local" or not cluster.gpus_per_worker:
        return []
    there = _count_gpus()
    groups = {"cluster.num_workers": cluster.min_workers}
    if config.mixing.needs.references == "computed":
        groups["reference.num_workers"] = config.reference.num_workers
    wanted = {key: number * cluster.gpus_per_worker for key, number in groups.items()}
    worst = max(wanted, key=lambda key: wanted[key])
    if wanted[worst] <= there:
        return []
    return [
        (
            ("cluster", "gpus_per_worker"),
            f"{worst} {groups[worst]} x {cluster.gpus_per_worker:g} = {wanted[worst]:g} GPUs, but this machine has "
            f"{there}{_why_none(there)}; {_what_fits(cluster, there)}, or name a cluster in cluster.address",
        )
    ]


def unwritable_output(config: RunConfig) -> list[Fault]:
    """A fault if no file can be created in `output_dir` or its nearest existing parent; on object storage, if a small
    object cannot be stored there and removed."""
    if uri := uri_of(config.output_dir):
        return [(("output_dir",), reason)] if (reason := _unwritable_object(uri)) else []
    place = config.output_dir.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        what = f"{place} is not a folder"
    elif not os.access(place, os.W_OK | os.X_OK):
        what = f"no write permission in {place}"
    else:
        return []
    return [(("output_dir",), f"cannot write to {config.output_dir} ({what}); choose another folder")]


def _unwritable_object(folder: str) -> str | None:
    try:
        check_writable(folder)
    except (StorageError, OSError) as error:
        return str(error)
    return None


def crowding(cluster: ClusterConfig) -> str | None:
    """A warning if a local run's workers need more CPUs than this machine has, and so share them."""
    there, wanted = os.cpu_count() or 1, cluster.min_workers * cluster.cpus_per_worker
    if cluster.address != "local" or wanted <= there:
        return None
    return (
        f"cluster.num_workers {cluster.min_workers} x cluster.cpus_per_worker {cluster.cpus_per_worker} = {wanted} "
        f"CPUs, but this machine has {there}: the workers will share them and run more slowly"
    )


def _count_gpus() -> int:
    import torch  # takes seconds; only runs that need a GPU get here

    return torch.cuda.device_count()


def _why_none(there: int) -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f" (CUDA_VISIBLE_DEVICES is {visible!r})" if visible is not None else "" if there else " that torch can use"


def _what_fits(cluster: ClusterConfig, there: int) -> str:
    if not there:
        return "set it to 0 to train on the CPU"
    fitting = int(there / cluster.gpus_per_worker)
    return f"lower the number of workers to {fitting}" if fitting else f"lower it to at most {there}"
