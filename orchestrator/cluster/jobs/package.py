"""The folder that is sent with a job: the configuration, and the files that it names by relative paths.

A folder that a configuration names belongs to the user: besides the model or data set it may contain a repository,
keys, notes, an environment, and links to anywhere. So only files of known purpose are sent, and a link is followed only
to a file of the same name or to the cache of the hub.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from orchestrator.config.errors import ConfigError, format_path
from orchestrator.config.sweep import SweepConfig
from workers.data.locations import files_to_carry

CONFIG_NAME = "config.yaml"
MAX_BYTES = 400 * 2**20  # Ray accepts packages of up to 500 MiB
_UP = "up"  # stands for ".." in the folder that is sent

# The files that transformers reads in a model folder: configuration, weights, tokenizer, chat template.
_OF_A_MODEL = (
    "config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "vocab.bpe",
    "vocab-*.json", "*_vocab.json", "word_*.json", "normalizer.json", "byte_maps.json", "dict.txt",
    "prophetnet.tokenizer", "spm_char.model", "merges.txt", "bpe.codes", "encoder.json", "emoji.json",
    "tokenizer.model", "tokenizer.model.v*", "spiece.model", "spm.model", "sentencepiece.bpe.model",
    "sentencepiece.model", "*.tiktoken", "tiktoken.model", "tekken.json", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
_OF_DATA = ("jsonl", "ndjson", "json", "parquet", "csv", "tsv", "arrow", "feather", "txt", "md", "zip")
_PACKED = ("gz", "zst", "bz2", "xz")
_SECRET = ("*credential*", "*secret*", "*password*", "*token*.txt", "id_rsa*", "id_ed25519*", "service[-_]account*")
_MAX_NAMED = 5

KeyPath = tuple[str | int, ...]

_ON_THE_CLUSTER: tuple[KeyPath, ...] = (("output_dir",), ("data", "cache_dir"), ("start", "run"))


def write_package(config: SweepConfig, folder: Path) -> list[str]:
    """Fill an empty folder with what a job needs: `config.yaml` and every file that it names.

    Returns: a line for each folder of which some files are not sent.

    Raises:
        ConfigError: a file is missing, or a path must be absolute because the cluster reads or writes there.
        ValueError: the files are larger than a job may be.
    """
    data = config.model_dump()
    faults = [
        f"{format_path(key)}: {path} is relative; give the absolute path of a folder that all nodes share, or a URI"
        for key, path in _paths(data)
        if key in _ON_THE_CLUSTER and not path.is_absolute()
    ]
    travelling = {key: path for key, path in _paths(data) if key not in _ON_THE_CLUSTER and not path.is_absolute()}
    faults += [
        fault
        for key, path in _paths(data)
        if path.is_dir() and key not in _ON_THE_CLUSTER and (fault := _refuse_whole_place(format_path(key), path))
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
    for key, path in travelling.items():
        group: Any = data
        for part in key[:-1]:
            group = group[part]
        group[key[-1]] = type(group[key[-1]])(_inside(path))
    # The job's driver is already in the cluster, and the runtime environment applies to the job.
    data["cluster"] |= {"address": "auto", "runtime_env": {}}
    plain = SweepConfig.model_validate(data).model_dump(mode="json")
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
    files, left = _pick(path, _is_of_model if is_model else _is_of_data)
    if is_model and Path("config.json") not in files:
        raise ValueError(f"{path} has no config.json, so it is not a Hugging Face model folder")
    if not files:
        raise ValueError(f"{path} has no files of a data set; give another folder")
    return {path / inside: source for inside, source in files.items()}, _describe_left(path, left)


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


def _inside(path: Path) -> Path:
    return Path(*(_UP if part == ".." else part for part in path.parts))


def _refuse_whole_place(key: str, folder: Path) -> str:
    """What is wrong with a folder that has more than a model or data set in it; empty if nothing is."""
    place, here = folder.resolve(), Path.cwd().resolve()
    root, home = Path(place.anchor), Path.home().resolve()
    known = {root: "the root of the file system", home: "your home folder", here: "the current folder"}
    what = known.get(place) or (f"a parent of the current folder {here}" if place in here.parents else "")
    return what and f"{key}: {folder} is {what}, and would be sent with the job; put the files in a separate folder"


def _is_of_model(path: Path) -> bool:
    """A file in a model's folder itself, or in that of its chat templates."""
    return any(fnmatch(str(path), pattern) for pattern in _OF_A_MODEL)


def _is_of_data(path: Path) -> bool:
    """A file of a known type, at any depth, not hidden and not named like a secret."""
    name = path.name.lower()
    is_hidden = any(part.startswith((".", "__")) for part in path.parts)
    if is_hidden or any(fnmatch(name, pattern) for pattern in _SECRET):
        return False
    *_, last = parts = name.split(".")
    return last in _OF_DATA or (last in _PACKED and len(parts) > 2 and parts[-2] in _OF_DATA)


def _pick(folder: Path, is_wanted: Callable[[Path], bool]) -> tuple[dict[Path, Path], list[Path]]:
    """Path inside the folder -> the file with the content, for all that are sent; and the paths of all others."""
    files: dict[Path, Path] = {}
    left: list[Path] = []
    place = folder.resolve()
    for path in _walk(place):
        inside = path.relative_to(place)
        if is_wanted(inside) and path.is_file() and _is_same_file(path):
            files[inside] = path.resolve()
        else:
            left.append(inside)
    return files, left


def _describe_left(folder: Path, left: list[Path]) -> str | None:
    """A line about the files that are not sent; None if all are."""
    if not left:
        return None
    groups = Counter(f"{path.parts[0]}/" if len(path.parts) > 1 else path.name for path in left)
    # Hidden ones first: the reader most needs to know that these are not sent.
    names = sorted(groups, key=lambda name: (not name.startswith("."), name))
    counted = [f"{name} ({groups[name]:,} files)" if groups[name] > 1 else name for name in names]
    named = ", ".join(counted[:_MAX_NAMED])
    more = f" and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else ""
    count = f"{len(left):,} {'file is' if len(left) == 1 else 'files are'}"
    return f"{folder}: {count} not sent, as the job does not need them: {named}{more}"


def _walk(folder: Path) -> Iterator[Path]:
    """Every file and every link below a folder; links to folders are not followed."""
    for root, folders, names in os.walk(folder, followlinks=False):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        folders[:] = sorted(set(folders) - set(links))
        yield from (Path(root) / name for name in sorted([*names, *links]))


def _is_same_file(path: Path) -> bool:
    """Whether a path leads to the file that its name suggests, and is not a harmless-looking link to another."""
    target = path.resolve()
    is_named_alike = target.name == path.name or (target.suffix == path.suffix == ".safetensors")
    return is_named_alike or _is_blob(path, target)


def _is_blob(path: Path, target: Path) -> bool:
    """The hub's cache: snapshots/<commit>/<file> is a link to blobs/<hash> next to `snapshots`."""
    snapshots = next((parent for parent in path.parents if parent.name == "snapshots"), None)
    return snapshots is not None and target.parent == (snapshots.parent / "blobs").resolve()
