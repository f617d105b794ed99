"""Inspect data files: what their names and first rows say."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workers.data.files import KINDS, BadRow, Shard, split_suffix
from workers.data.formats import read_row
from workers.data.formats.detection import detect_layout
from workers.data.formats.example import Example
from workers.data.formats.refusals import find_refusal
from workers.data.formats.values import RowError
from workers.data.locations import EVAL_WORDS, TRAIN_WORDS, find_files, is_rows, is_saved
from workers.data.reading import read_rows
from workers.data.templates import Tokens, tokenize_examples
from workers.data.tokenization import hash_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_LOOKED_AT = 10_000
EXAMPLES_COUNTED = 1000
_BYTES_LOOKED_AT = 64 * 2**20
_BYTES_PER_TOKEN = 4  # of English in common vocabularies; `raymix check` counts exactly
_BATCH = 100


@dataclass
class FoundDomain:
    """Files that belong together."""

    name: str
    train: list[Path] = field(default_factory=list)
    eval: list[Path] = field(default_factory=list)
    format: str | None = None
    """Format of the rows; None if no format fits."""
    fields: dict[str, str] = field(default_factory=dict)
    """The format's field names -> the file's, where they differ."""
    refusal: str | None = None
    """Why the format cannot be guessed, and what to write instead."""
    keys: list[str] = field(default_factory=list)
    """Fields of the first row, shown to a user who has to name them."""
    num_rows_seen: int = 0
    is_whole: bool = False
    """Whether these are all rows of the domain."""
    num_bad_rows: int = 0
    num_refused: int = 0
    """Sampled examples that the tokenizer or its chat template refuses."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of the sampled examples: at most EXAMPLES_COUNTED of them, spread evenly over the rows seen."""
    is_estimate: bool = True
    """Whether the lengths are estimated from the size of the text."""
    prompts: list[tuple[int, Tokens | None]] = field(default_factory=list)
    """Hash of the prompt and tokens (None if they were not counted) of the same examples."""

    @property
    def tokens_95(self) -> int:
        """The length in tokens that 95 % of the sampled examples do not exceed."""
        return int(np.quantile(self.lengths, 0.95, method="higher")) if self.lengths else 0

    def fraction_within(self, length: int) -> float:
        """Fraction of the sampled examples with at most `length` tokens."""
        return float(np.mean(np.asarray(self.lengths) <= length)) if self.lengths else 1.0


def find_domains(paths: Sequence[Path], tokenizer: "PreTrainedTokenizerBase | None" = None) -> list[FoundDomain]:
    """Domains by the names of files or of their folders: `math-train.jsonl`, `math/eval.jsonl.gz`.

    Without a tokenizer the tokens are estimated. ValueError without a data file, or for a domain without training data.
    """
    domains: dict[str, FoundDomain] = {}
    for path in _data_files(paths):
        name, is_eval = _read_name(path)
        domain = domains.setdefault(name, FoundDomain(name))
        (domain.eval if is_eval else domain.train).append(path)
    for domain in domains.values():
        if not domain.train:
            raise ValueError(
                f"domain {domain.name!r} has only evaluation files, {[str(path) for path in domain.eval]}; add its "
                "training files, or leave it out"
            )
        _look(domain, tokenizer)
    return list(domains.values())


def _data_files(paths: Sequence[Path]) -> list[Path]:
    """Files of rows, and folders of saved data sets, each of which counts as one file."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder; check the path")
        files += _below(path) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{', '.join(map(str, paths))}: no {KINDS} file found")
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


def _look(domain: FoundDomain, tokenizer: "PreTrainedTokenizerBase | None") -> None:
    rows = list(_first_rows(domain))
    good: list[tuple[int, Any]] = [row for row in rows if not isinstance(row, BadRow)]
    objects = [row for _, row in good if isinstance(row, dict)]
    domain.keys = list(map(str, objects[0])) if objects else []
    domain.refusal = find_refusal(objects, {})
    if domain.refusal is None:
        domain.format, domain.fields = detect_layout(objects, {}) or (None, {})
    domain.num_rows_seen = len(rows)
    domain.num_bad_rows = len(rows) - len(good)
    examples = []
    for line, row in good if domain.format else []:
        try:
            examples.append(read_row(line, row, str(domain.format), domain.fields))
        except RowError:
            domain.num_bad_rows += 1
    num_counted = min(len(examples), EXAMPLES_COUNTED)
    _count_tokens(domain, [examples[at * len(examples) // num_counted] for at in range(num_counted)], tokenizer)


def _first_rows(domain: FoundDomain) -> Iterator[tuple[int, Any] | BadRow]:
    """The first rows of each training file; a domain's files share its limits of rows and bytes equally."""
    domain.is_whole = True
    files = [file for path in domain.train for file in find_files(path).files]
    for file in files:
        num_bytes = 0
        for number, row in enumerate(read_rows(file, Shard())):
            if number >= ROWS_LOOKED_AT / len(files) or num_bytes >= _BYTES_LOOKED_AT / len(files):
                domain.is_whole = False
                break
            num_bytes += 0 if isinstance(row, BadRow) else len(str(row[1]))
            yield row


def _count_tokens(
    domain: FoundDomain, examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase | None"
) -> None:
    domain.is_estimate = tokenizer is None
    if tokenizer is None:
        domain.lengths = [sum(len(text.encode()) for text in e.texts) // _BYTES_PER_TOKEN for e in examples]
        domain.prompts = [(hash_prompt(example), None) for example in examples]
        return
    for start in range(0, len(examples), _BATCH):
        batch = examples[start : start + _BATCH]
        for example, tokens in zip(batch, tokenize_examples(tokenizer, batch), strict=True):
            if isinstance(tokens, str):
                domain.num_refused += 1
            else:
                domain.lengths.append(len(tokens.input_ids))
                domain.prompts.append((hash_prompt(example), tokens))
