"""One shard of a source -> flat token files for each side (train, eval), and a report of what was left out.

Files of a side: `input_ids`, `loss_mask`, `lengths`, `prompts` and `examples` (64-bit hashes): raw arrays without a
header, written as the rows are read, so memory stays flat.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from workers.config.data import DataConfig
from workers.data.files import BadRow, Shard
from workers.data.formats.example import Example, ExcludedRow
from workers.data.reading import Blocks
from workers.data.report import Report, check_bad_rows
from workers.data.sources import Source, read_examples
from workers.data.templates import Tokens, tokenize_examples
from workers.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = Example | ExcludedRow | BadRow
Side = Literal["train", "eval"]
SIDES: tuple[Side, Side] = ("train", "eval")

_DTYPES: dict[str, Any] = {
    "input_ids": np.int32,
    "loss_mask": np.bool_,
    "lengths": np.int32,
    "prompts": np.uint64,
    "examples": np.uint64,
}
_BATCH_EXAMPLES = 512
_BATCH_CHARACTERS = 4 * 2**20


class ShardTask(Settings):
    """One part of one source, and which side its examples go to."""

    domain: str
    source: Source
    shard: Shard
    side: Side
    eval_fraction: float = 0.0
    """Fraction of the prompts that goes to the eval side regardless of `side`."""

    def side_of(self, prompt_hash: int) -> Side:
        """A function of the prompt, so that equal prompts stay on the same side."""
        return "eval" if prompt_hash < self.eval_fraction * 2.0**64 else self.side


class TokenShard(Settings):
    """The flat files of a shard."""

    folder: Path
    num_examples: dict[Side, int]
    report: Report

    def array(self, side: Side, name: str, start: int = 0, num_values: int = -1) -> NDArray[Any]:
        """A flat file, or at most this many of its values from `start` on."""
        dtype = np.dtype(_DTYPES[name])
        return np.fromfile(self.folder / f"{side}.{name}", dtype, num_values, offset=start * dtype.itemsize)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an example that is kept: piece `number` (from 1) of `count`."""

    number: int
    count: int
    tokens: Tokens


def hash_prompt(example: Example) -> int:
    """64-bit hash of a prompt; of the answer if the prompt is empty."""
    prompt = example.prompt
    if not prompt.strip("\x1f"):
        prompt = " ".join("\x1f".join(example.texts).casefold().split())
    return int.from_bytes(blake2b(prompt.encode(), digest_size=8).digest(), "little")


def hash_example(tokens: Tokens) -> int:
    """64-bit hash of what is trained on: the ids, and which of them are targets."""
    digest = blake2b(np.ascontiguousarray(tokens.input_ids).data, digest_size=8)
    digest.update(np.ascontiguousarray(tokens.loss_mask).data)
    return int.from_bytes(digest.digest(), "little")


def tokenize_shard(
    task: ShardTask,
    data: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
    parent: Path,
    blocks: Blocks | None = None,
) -> TokenShard:
    """Write the shard's flat files into a new folder in `parent`. `blocks` as `read_rows` takes them."""
    return tokenize_rows(task, read_examples(task.source, task.shard, blocks), data, tokenizer, parent)


def tokenize_rows(
    task: ShardTask, rows: Iterator[Row], data: DataConfig, tokenizer: "PreTrainedTokenizerBase", parent: Path
) -> TokenShard:
    """The same for these rows of the task's source."""
    folder = Path(tempfile.mkdtemp(prefix="tokens-", dir=parent))
    num_examples: dict[Side, int] = dict.fromkeys(SIDES, 0)
    report = Report()
    with ExitStack() as stack:
        names = [(side, name) for side in SIDES for name in _DTYPES]
        files = {(side, name): stack.enter_context((folder / f"{side}.{name}").open("wb")) for side, name in names}
        for batch in _batches(rows):
            examples = [row for row in batch if isinstance(row, Example)]
            results = tokenize_examples(tokenizer, examples)
            report = Report.merged([report, _report_batch(task, data, batch, examples, results)])
            if data.bad_rows == "fail":
                check_bad_rows(task.domain, data, report)
            kept: dict[Side, list[tuple[int, Tokens]]] = {side: [] for side in SIDES}
            for example, tokens in zip(examples, results, strict=True):
                if isinstance(tokens, str):
                    continue
                prompt_hash = hash_prompt(example)
                kept[task.side_of(prompt_hash)] += [(prompt_hash, piece) for piece in fit_example(tokens, data)]
            for side, pieces in kept.items():
                num_examples[side] += len(pieces)
                _write_pieces(side, pieces, files)
    return TokenShard(folder=folder, num_examples=num_examples, report=report)


def fit_example(tokens: Tokens, data: DataConfig) -> list[Tokens]:
    """The pieces of an example that are kept, of at most max_length tokens and with a target."""
    return [tokens] if len(tokens.input_ids) <= data.max_length else [p.tokens for p in cut_example(tokens, data)]


def cut_example(tokens: Tokens, data: DataConfig) -> list[Piece]:
    """The same pieces, each with its place in the example."""
    length = len(tokens.input_ids)
    if length <= data.max_length:
        return [Piece(1, 1, tokens)]
    if data.too_long == "drop":
        return []
    starts = range(0, length, data.max_length)
    pieces = []
    for number, start in enumerate(starts if data.too_long == "split" else starts[:1], start=1):
        loss_mask = tokens.loss_mask[start : start + data.max_length].copy()
        loss_mask[0] = False
        if loss_mask.any():
            ids = tokens.input_ids[start : start + data.max_length]
            pieces.append(Piece(number, len(starts), Tokens(ids, loss_mask, tokens.dropped)))
    return pieces


def _write_pieces(side: Side, pieces: Sequence[tuple[int, Tokens]], files: Mapping[tuple[Side, str], BinaryIO]) -> None:
    """Append pieces, each with the hash of its prompt, to the flat files of a side."""
    if not pieces:
        return
    arrays = {
        "input_ids": np.concatenate([tokens.input_ids for _, tokens in pieces]),
        "loss_mask": np.concatenate([tokens.loss_mask for _, tokens in pieces]),
        "lengths": np.array([len(tokens.input_ids) for _, tokens in pieces]),
        "prompts": np.array([prompt_hash for prompt_hash, _ in pieces], dtype=np.uint64),
        "examples": np.array([hash_example(tokens) for _, tokens in pieces], dtype=np.uint64),
    }
    for name, dtype in _DTYPES.items():
        arrays[name].astype(dtype, copy=False).tofile(files[side, name])


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    num_characters = 0
    for row in rows:
        batch.append(row)
        num_characters += row.num_characters if isinstance(row, Example) else 0
        if len(batch) == _BATCH_EXAMPLES or num_characters >= _BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _report_batch(
    task: ShardTask, data: DataConfig, rows: list[Row], examples: list[Example], results: list[Tokens | str]
) -> Report:
    bad_rows = [row for row in rows if isinstance(row, BadRow)]
    too_long = []
    for example, result in zip(examples, results, strict=True):
        if isinstance(result, str):
            bad_rows.append(BadRow(task.source.name, example.line, result))
        elif len(result.input_ids) > data.max_length:
            too_long.append(result)
    report = Report.of_rows(len(rows) - len(bad_rows), sorted(bad_rows, key=lambda bad: bad.line))
    dropped = Counter(word for tokens in results if isinstance(tokens, Tokens) for word in set(tokens.dropped))
    num_excluded = sum(1 for row in rows if isinstance(row, ExcludedRow))
    counts = {"num_excluded": num_excluded, "dropped": dict(dropped), **_count_cuts(too_long, data)}
    return report.replaced(**counts)


def _count_cuts(too_long: Sequence[Tokens], data: DataConfig) -> dict[str, int]:
    """The report's counts of examples that are too long."""
    left = [fit_example(tokens, data) for tokens in too_long]
    kept = [piece for pieces in left for piece in pieces]
    num_lost = sum(1 for pieces in left if not pieces)
    return {
        "num_too_long": len(too_long),
        "num_too_long_lost": num_lost,
        "num_without_target": 0 if data.too_long == "drop" else num_lost,
        "num_tokens_cut": _num_tokens(too_long) - _num_tokens(kept),
        "num_targets_cut": _num_targets(too_long) - _num_targets(kept),
    }


def _num_tokens(examples: Sequence[Tokens]) -> int:
    return sum(len(tokens.input_ids) for tokens in examples)


def _num_targets(examples: Sequence[Tokens]) -> int:
    return sum(int(np.count_nonzero(tokens.loss_mask)) for tokens in examples)
