"""What can be told of data files by their names and their first rows."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from workers.data.files import KINDS, BadRow, RowError, Shard, split_suffix
from workers.data.formats import complete_fields, detect_format, find_refusal, read_row
from workers.data.locations import EVAL_WORDS, TRAIN_WORDS, find_files, is_rows, is_saved
from workers.data.reading import read_rows

ROWS_LOOKED_AT = 500
_CHARACTERS_PER_TOKEN = 4  # of English under the usual vocabularies; `raymix check` counts them


@dataclass
class FoundDomain:
    """Files that belong together."""

    name: str
    train: list[Path] = field(default_factory=list)
    eval: list[Path] = field(default_factory=list)
    format: str | None = None
    """Format of the rows; None where none fits."""
    fields: dict[str, str] = field(default_factory=dict)
    """The format's names of fields -> the file's, where they differ."""
    refusal: str | None = None
    """Why the format must not be guessed, and what to write."""
    keys: list[str] = field(default_factory=list)
    """Fields of the first row, for a person who has to name them."""
    num_rows_seen: int = 0
    num_bad_rows: int = 0
    tokens_95: int = 0
    """About how many tokens 95 % of the rows seen have at most."""


def find_domains(paths: Sequence[Path]) -> list[FoundDomain]:
    """Domains by the names of files, or of the folders they lie in: `math-train.jsonl`, `math/eval.jsonl.gz`.

    Raises:
        ValueError: there is no data file, or a domain has evaluation files alone.
    """
    domains: dict[str, FoundDomain] = {}
    for path in _data_files(paths):
        name, is_eval = _read_name(path)
        domain = domains.setdefault(name, FoundDomain(name))
        (domain.eval if is_eval else domain.train).append(path)
    for domain in domains.values():
        if not domain.train:
            raise ValueError(
                f"domain {domain.name!r} has evaluation files alone, {[str(path) for path in domain.eval]}; name its "
                "training files too, or leave it out"
            )
        _look(domain)
    return list(domains.values())


def _data_files(paths: Sequence[Path]) -> list[Path]:
    """The files with rows, and the folders of saved data sets, which are named as a whole."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder; mend the path")
        files += _below(path) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{', '.join(map(str, paths))}: no {KINDS} file there")
    return files


def _below(folder: Path) -> list[Path]:
    if is_saved(folder):
        return [folder]
    found: list[Path] = []
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        if path.is_dir():
            found += _below(path)
        elif is_rows(path):
            found.append(path)
    return found


def _read_name(path: Path) -> tuple[str, bool]:
    """Name of the domain, and whether the file or saved data set is for evaluation."""
    stem = path.name if path.is_dir() else path.name[: -len("".join(split_suffix(path)))]
    words = [word for word in re.split(r"[-_. ]+", re.sub(r"[-_]\d+[-_]of[-_]\d+$", "", stem)) if word]
    is_eval = bool(words) and words[-1].lower() in EVAL_WORDS
    while words and (words[-1].lower() in EVAL_WORDS | TRAIN_WORDS or (words[-1].isdigit() and len(words) > 1)):
        is_eval = is_eval or words[-1].lower() in EVAL_WORDS
        words.pop()
    name = "-".join(words) or path.resolve().parent.name
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-._") or "domain", is_eval


def _look(domain: FoundDomain) -> None:
    files = [file for path in domain.train for file in find_files(path).files]
    rows = [row for file in files for row in islice(read_rows(file, Shard()), max(1, ROWS_LOOKED_AT // len(files)))]
    good: list[tuple[int, Any]] = [row for row in rows if not isinstance(row, BadRow)]
    objects = [row for _, row in good if isinstance(row, dict)]
    domain.keys = list(map(str, objects[0])) if objects else []
    domain.refusal = find_refusal(objects, {})
    if domain.refusal is None:
        domain.format, domain.fields = detect_format(objects, {}), complete_fields(objects, {})
    lengths = []
    for line, row in good if domain.format else []:
        try:
            lengths.append(read_row(line, row, str(domain.format), domain.fields).num_characters)
        except RowError:
            domain.num_bad_rows += 1
    domain.num_rows_seen = len(rows)
    domain.num_bad_rows += len(rows) - len(good)
    if lengths:
        domain.tokens_95 = int(np.quantile(lengths, 0.95)) // _CHARACTERS_PER_TOKEN
