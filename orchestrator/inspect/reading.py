"""Read the first examples of a domain as the model will see them, in the order of the files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from workers.config.data import DataConfig
from workers.data.files import BadRow, Shard
from workers.data.formats import Example, ExcludedRow
from workers.data.preparing import DomainPlan
from workers.data.sources import read_examples
from workers.data.templates import Tokens, tokenize_examples
from workers.data.tokenization import Piece, ShardTask, Side, cut_example, hash_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_ROWS = 16


@dataclass(frozen=True)
class SeenExample:
    """An example, or the piece that is left of it after cutting."""

    domain: str
    split: Side
    file: str
    line: int
    piece: Piece
    whole: Tokens
    """The example before it was cut."""


@dataclass(frozen=True)
class RefusedRow:
    domain: str
    split: Side
    file: str
    line: int
    reason: str


Row = Example | BadRow | ExcludedRow
Seen = SeenExample | RefusedRow | ExcludedRow


def read_split(plan: DomainPlan, split: Side, data: DataConfig, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Seen]:
    """All rows of one split of a domain, in order; an unreadable row belongs to its file's split."""
    # A source has a task for each shard; here it is read whole, once.
    for task in (task for task in plan.tasks if task.shard.index == 0):
        if task.side != split and not (split == "eval" and task.eval_fraction):
            continue
        rows = _rows_of(task, split)
        while batch := list(islice(rows, _BATCH_ROWS)):
            yield from _tokenized(task, split, batch, data, tokenizer)


def _rows_of(task: ShardTask, split: Side) -> Iterator[Row]:
    for row in read_examples(task.source, Shard()):
        if isinstance(row, Example):
            if task.side_of(hash_prompt(row)) == split:
                yield row
        elif task.side == split:
            yield row


def _tokenized(
    task: ShardTask, split: Side, rows: Sequence[Row], data: DataConfig, tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[Seen]:
    domain, file = task.domain, task.source.name
    results = iter(tokenize_examples(tokenizer, [row for row in rows if isinstance(row, Example)]))
    for row in rows:
        if isinstance(row, ExcludedRow):
            yield row
            continue
        result = row.reason if isinstance(row, BadRow) else next(results)
        if isinstance(result, str):
            yield RefusedRow(domain, split, file, row.line, result)
            continue
        pieces = cut_example(result, data)
        if not pieces:
            yield RefusedRow(domain, split, file, row.line, _why_left_out(result, data))
        yield from (SeenExample(domain, split, file, row.line, piece, result) for piece in pieces)


def _why_left_out(tokens: Tokens, data: DataConfig) -> str:
    length = f"{len(tokens.input_ids):,} tokens, data.max_length {data.max_length:,}"
    if data.too_long == "drop":
        return f"left out: {length} (data.too_long: drop)"
    place = "the first piece" if data.too_long == "truncate" else "any piece"
    return f"left out: {length}, and no target in {place} (data.too_long: {data.too_long})"
