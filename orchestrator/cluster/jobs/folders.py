"""Which files of a folder are sent with a job: those of a model, or of a data set, and no others.

A folder that a configuration names belongs to the user: besides the model it may contain a repository, keys, notes, an
environment, and links to anywhere. So only files of known purpose are sent, and a link is followed only to a file of
the same name or to the hub's cache.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

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


@dataclass(frozen=True)
class Choice:
    """The files of a folder that are sent."""

    files: dict[Path, Path]
    """Path inside the folder -> the file with the content."""
    left: tuple[Path, ...]
    """Paths inside the folder of files that are not sent."""

    def describe_left(self, folder: Path) -> str | None:
        """A line about the files that are not sent; None if all are."""
        if not self.left:
            return None
        groups = Counter(f"{path.parts[0]}/" if len(path.parts) > 1 else path.name for path in self.left)
        # Hidden ones first: the reader most needs to know that these are not sent.
        names = sorted(groups, key=lambda name: (not name.startswith("."), name))
        counted = [f"{name} ({groups[name]:,} files)" if groups[name] > 1 else name for name in names]
        named = ", ".join(counted[:_MAX_NAMED])
        more = f" and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else ""
        count = f"{len(self.left):,} {'file is' if len(self.left) == 1 else 'files are'}"
        return f"{folder}: {count} not sent, as the job does not need them: {named}{more}"


def choose_model_files(folder: Path) -> Choice:
    """The files of a model, in the folder itself and in that of its chat templates."""
    return _choose(folder, lambda path: any(fnmatch(str(path), pattern) for pattern in _OF_A_MODEL))


def choose_data_files(folder: Path) -> Choice:
    """The files of a data set: of known types, at any depth, not hidden and not named like a secret."""
    return _choose(folder, _is_of_data)


def refuse_whole_place(key: str, folder: Path) -> str | None:
    """What is wrong with a folder that has more than a model or data set in it; None if nothing is."""
    place, here = folder.resolve(), Path.cwd().resolve()
    if place == here:
        what = "the current folder"
    elif place == Path.home().resolve():
        what = "your home folder"
    elif place == Path(place.anchor):
        what = "the root of the file system"
    elif place in here.parents:
        what = f"a parent of the current folder {here}"
    else:
        return None
    return f"{key}: {folder} is {what}, and would be sent with the job; put the files in a separate folder"


def _is_of_data(path: Path) -> bool:
    if any(part.startswith((".", "__")) for part in path.parts) or _is_secret(path.name):
        return False
    *_, last = parts = path.name.lower().split(".")
    return last in _OF_DATA or (last in _PACKED and len(parts) > 2 and parts[-2] in _OF_DATA)


def _is_secret(name: str) -> bool:
    return any(fnmatch(name.lower(), pattern) for pattern in _SECRET)


def _choose(folder: Path, is_wanted: Callable[[Path], bool]) -> Choice:
    files: dict[Path, Path] = {}
    left: list[Path] = []
    place = folder.resolve()
    for path in _walk(place):
        inside = path.relative_to(place)
        if is_wanted(inside) and path.is_file() and _is_same_file(path):
            files[inside] = path.resolve()
        else:
            left.append(inside)
    return Choice(files, tuple(left))


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
