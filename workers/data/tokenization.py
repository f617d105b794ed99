"""One shard of a source -> flat token files, one set for each side (train, eval), and a report of what was left out.

Files of a side: `input_ids`, `loss_mask`, `lengths` and `prompts` (64-bit hashes), plain arrays without a header,
written as the rows are read, so memory stays flat.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from workers.config import DataConfig
from workers.data.files import BadRow, Shard
from workers.data.formats import Example, ExcludedRow
from workers.data.report import Report, check_bad_rows
from workers.data.sources import Source, read_examples
from workers.data.templates import Tokens, tokenize_examples
from workers.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = Example | ExcludedRow | BadRow
Side = Literal["train", "eval"]
SIDES: tuple[Side, Side] = ("train", "eval")

_DTYPES: dict[str, Any] = {"input_ids": np.int32, "loss_mask": np.bool_, "lengths": np.int32, "prompts": np.uint64}
_BATCH_EXAMPLES = 512
_BATCH_CHARACTERS = 4 * 2**20


class ShardTask(Settings):
    """One part of one source, and which side its examples go to."""

    domain: str
    """Name of the domain, for messages."""
    source: Source
    """What to read."""
    shard: Shard
    """Which part of it."""
    side: Side
    """The side of its examples."""
    eval_fraction: float = 0.0
    """Fraction of the prompts that goes to the eval side all the same."""

    def side_of(self, prompt_hash: int) -> Side:
        """The side of a prompt: a function of the prompt, so that equal prompts never part."""
        return "eval" if prompt_hash < self.eval_fraction * 2.0**64 else self.side


class TokenShard(Settings):
    """The flat files of a shard."""

    folder: Path
    """Where they are."""
    num_examples: dict[Side, int]
    """Examples on each side."""
    report: Report
    """What was left out."""

    def array(self, side: Side, name: str) -> NDArray[Any]:
        """One of the flat arrays, memory-mapped."""
        path = self.folder / f"{side}.{name}"
        if path.stat().st_size == 0:  # nothing to map
            return np.empty(0, dtype=_DTYPES[name])
        return np.memmap(path, dtype=_DTYPES[name], mode="r")


def hash_prompt(example: Example) -> int:
    """64 bits that tell prompts apart."""
    return int.from_bytes(blake2b(example.prompt.encode(), digest_size=8).digest(), "little")


def tokenize_shard(task: ShardTask, data: DataConfig, tokenizer: "PreTrainedTokenizerBase", parent: Path) -> TokenShard:
    """Write the shard's flat files into a fresh folder in `parent`."""
    folder = Path(tempfile.mkdtemp(prefix="tokens-", dir=parent))
    num_examples: dict[Side, int] = dict.fromkeys(SIDES, 0)
    report = Report()
    with ExitStack() as stack:
        files = _open_flat_files(folder, stack)
        for rows in _batches(read_examples(task.source, task.shard)):
            examples = [row for row in rows if isinstance(row, Example)]
            results = tokenize_examples(tokenizer, examples)
            report = Report.merged([report, _report_batch(task, data, rows, examples, results)])
            if data.bad_rows == "fail":
                check_bad_rows(task.domain, data, report)
            for example, tokens in zip(examples, results, strict=True):
                if isinstance(tokens, str):
                    continue
                prompt_hash = hash_prompt(example)
                side = task.side_of(prompt_hash)
                for piece in fit_example(tokens, data):
                    num_examples[side] += 1
                    piece.input_ids.tofile(files[side, "input_ids"])
                    piece.loss_mask.tofile(files[side, "loss_mask"])
                    np.asarray(len(piece.input_ids), np.int32).tofile(files[side, "lengths"])
                    np.asarray(prompt_hash, np.uint64).tofile(files[side, "prompts"])
    return TokenShard(folder=folder, num_examples=num_examples, report=report)


def fit_example(tokens: Tokens, data: DataConfig) -> list[Tokens]:
    """What is left of an example in pieces of at most max_length tokens; a piece without a target is not kept."""
    length = len(tokens.input_ids)
    if length <= data.max_length:
        return [tokens]
    if data.too_long == "drop":
        return []
    starts = range(0, length if data.too_long == "split" else 1, data.max_length)
    pieces = []
    for start in starts:
        loss_mask = tokens.loss_mask[start : start + data.max_length].copy()
        loss_mask[0] = False
        if loss_mask.any():
            pieces.append(Tokens(tokens.input_ids[start : start + data.max_length], loss_mask))
    return pieces


def _open_flat_files(folder: Path, stack: ExitStack) -> dict[tuple[Side, str], BinaryIO]:
    return {
        (side, name): stack.enter_context((folder / f"{side}.{name}").open("wb")) for side in SIDES for name in _DTYPES
    }


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
    task: ShardTask,
    data: DataConfig,
    rows: list[Row],
    examples: list[Example],
    results: list[Tokens | str],
) -> Report:
    bad_rows = [row for row in rows if isinstance(row, BadRow)]
    too_long = []
    for example, result in zip(examples, results, strict=True):
        if isinstance(result, str):
            bad_rows.append(BadRow(task.source.name, example.line, result))
        elif len(result.input_ids) > data.max_length:
            too_long.append(result)
    report = Report.of_rows(len(rows) - len(bad_rows), sorted(bad_rows, key=lambda bad: bad.line))
    num_lost = sum(1 for tokens in too_long if not fit_example(tokens, data))
    num_excluded = sum(1 for row in rows if isinstance(row, ExcludedRow))
    counts = {"num_too_long": len(too_long), "num_too_long_lost": num_lost, "num_excluded": num_excluded}
    return report.model_copy(update=counts)
