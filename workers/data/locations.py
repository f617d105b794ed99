"""The files that `train` and `eval` name: files, folders of files or from `save_to_disk`, and patterns.

In a folder, at any depth, and with a pattern, only files of a supported type are taken, in the order of their paths.
Hidden files and folders (whose name begins with a dot) are ignored; other files are left out and reported.
"""

import glob
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workers.data.contents import identify, read_head
from workers.data.files import COMPRESSIONS, KINDS, split_suffix
from workers.storage.addresses import shown, uri_of
from workers.storage.data import bring

EVAL_WORDS = frozenset({"eval", "evaluation", "test", "valid", "validation", "val", "dev", "heldout"})
TRAIN_WORDS = frozenset({"train", "training"})

_PATTERN = re.compile(r"[*?\[]")
# Written beside the rows by the `datasets` library.
_SAVED_MARKS = ("state.json", "dataset_info.json")
_SPLITS_FILE = "dataset_dict.json"
_NOT_ROWS = {*_SAVED_MARKS, _SPLITS_FILE, "dataset_infos.json"}
_SHOWN = 5


@dataclass(frozen=True)
class FoundFiles:
    """The files that one path of a configuration names."""

    files: list[Path]
    ignored: list[Path]  # files of another type

    @property
    def told_ignored(self) -> str:
        """What was left out, in words; "" if nothing was."""
        return f"{len(self.ignored):,} left out (another file type): {_names(self.ignored)}" if self.ignored else ""


def find_files(path: Path) -> FoundFiles:
    """The files of one path of `train` or `eval`.

    What is on object storage is brought to this node first.

    Raises:
        ValueError: there are none, or they cannot be one side of a domain; the message has no line break.
        StorageError: the storage cannot be read.
    """
    path = path.expanduser()
    bring(path)
    if path.is_file():
        _check_kind(path)
        return FoundFiles([path], [])
    if path.is_dir():
        return _of_folder(path)
    where = "" if path.is_absolute() else f" (looked in {Path.cwd()})"
    if not _PATTERN.search(str(path)) or path.exists():  # a file with exactly that name takes precedence
        raise ValueError(f"{shown(path)}: no such {'object' if uri_of(path) else 'file'}{where}; check the path")
    return _of_pattern(path, where)


def is_saved(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _SAVED_MARKS)


def files_to_carry(path: Path) -> list[Path]:
    """What must be copied so that the path names the same files elsewhere; ValueError as in `find_files`."""
    files = find_files(path).files
    folders = dict.fromkeys(file.parent for file in files)
    return files + [folder / name for folder in folders if is_saved(folder) for name in _SAVED_MARKS]


def split_of(file: Path) -> str | None:
    """ "train" or "eval" if the last word (not number) of the file's name, or of its folder's, says so."""
    name = file.name
    for suffix in [suffix for suffix in file.suffixes[-2:] if suffix.lower() in COMPRESSIONS][-1:]:
        name = name.removesuffix(suffix)
    for part in (Path(name).stem, file.parent.name):
        words = [word.lower() for word in re.split(r"[-_. ]+", part) if word]
        while words and (words[-1].isdigit() or words[-1] == "of"):
            words.pop()
        if words and words[-1] in EVAL_WORDS | TRAIN_WORDS:
            return "eval" if words[-1] in EVAL_WORDS else "train"
    return None


def _check_kind(path: Path) -> None:
    try:
        split_suffix(path)
    except ValueError as error:
        found = identify(read_head(path))
        what = f"; this is {found[0]}" if found else ""
        advice = f": {found[1]}" if found and not found[1].startswith(".") else ""
        raise ValueError(f"{error}{what}{advice}") from None


def _of_folder(folder: Path) -> FoundFiles:
    if is_saved(folder):
        return FoundFiles(_saved_files(folder), [])
    _refuse_splits(folder)
    found: list[Path] = []
    ignored: list[Path] = []
    for file in _walk(folder):
        (found if is_rows(file) else ignored).append(file)
    if not found:
        seen = f"; there is {_names(ignored)}" if ignored else ""
        raise ValueError(f"{shown(folder)}: no {KINDS} file in this folder{seen}")
    name = folder.absolute().name
    held_out = [file for file in found if split_of(name / file.relative_to(folder)) == "eval"]
    if held_out and len(held_out) < len(found):
        others = [file for file in found if file not in held_out]
        raise ValueError(
            f"{folder}: contains evaluation files ({_names(held_out)}) and others ({_names(others)}); name the files "
            "of each side, or a pattern for them"
        )
    return FoundFiles(found, ignored)


def _of_pattern(pattern: Path, where: str) -> FoundFiles:
    matches = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207 - Path.glob takes no absolute pattern
    files: dict[Path, None] = {}
    ignored, folders = [], []
    for match in matches:
        if match.is_dir():
            if is_saved(match):
                files.update(dict.fromkeys(_saved_files(match)))
            else:
                folders.append(match)
        elif match.is_file() and is_rows(match):
            files[match] = None
        else:
            ignored.append(match)
    if files:
        return FoundFiles(list(files), ignored)
    if not matches:
        raise ValueError(f"{shown(pattern)}: nothing matches this pattern{where}; correct it")
    if folders:
        raise ValueError(f"{pattern}: matches only folders ({_names(folders)}); add /** for the files in them")
    raise ValueError(f"{pattern}: matches no {KINDS} file, only {_names(ignored)}")


def _walk(folder: Path) -> Iterator[Path]:
    """All files below, in the order of their paths; each folder once, even if several links lead to it."""
    seen: set[tuple[int, int]] = set()
    files: list[Path] = []
    for name, folders, names in os.walk(folder, onerror=_refuse_closed, followlinks=True):
        here = Path(name)
        status = here.stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if is_saved(here):
            folders.clear()
            files += _saved_files(here)
            continue
        _refuse_splits(here)
        folders[:] = sorted(part for part in folders if not part.startswith("."))
        files += [here / part for part in names if not part.startswith(".") and (here / part).is_file()]
    yield from sorted(files)


def _refuse_closed(error: OSError) -> None:
    raise ValueError(f"{error.filename}: this folder cannot be read: {error.strerror}")


def _saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a saved data set, in its order."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        names = [str(file["filename"]) for file in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{folder}: its state.json was not written by save_to_disk; save the data set again") from None
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise ValueError(f"{folder}: its state.json names {name[:80]!r}, which is not a file in it; save it again")
    if not names:
        raise ValueError(f"{folder}: a saved data set without rows; remove it")
    return [folder / name for name in names]


def _refuse_splits(folder: Path) -> None:
    if not (folder / _SPLITS_FILE).is_file():
        return
    try:
        splits = json.loads((folder / _SPLITS_FILE).read_text(encoding="utf-8"))["splits"]
        paths = ", ".join(str(folder / str(split)) for split in splits)
    except (OSError, ValueError, KeyError, TypeError):
        paths = "its folders"
    raise ValueError(f"{folder}: a saved data set of several splits; name one of them: {paths}")


def is_rows(file: Path) -> bool:
    """Whether a file in a folder holds rows: of a supported type, and not one that describes the others."""
    try:
        split_suffix(file)
    except ValueError:
        return False
    return file.name not in _NOT_ROWS


def _names(paths: list[Path]) -> str:
    more = f" and {len(paths) - _SHOWN:,} more" if len(paths) > _SHOWN else ""
    return ", ".join(path.name for path in paths[:_SHOWN]) + more
