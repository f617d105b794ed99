"""`raymix inspect`: show the first rows of each domain one by one, with what is learned in colour, or as JSON."""

import difflib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from orchestrator.config.errors import ConfigError
from orchestrator.config.run import RunConfig
from orchestrator.views.format import printable
from workers.config.data import DataConfig
from workers.data.chat_template import freeze_date
from workers.data.files import BadRow, Shard
from workers.data.formats.example import Example, ExcludedRow
from workers.data.preparing import DomainPlan, fingerprint_tokenizer, plan_domain
from workers.data.sources import read_examples
from workers.data.templates import Tokens, tokenize_examples
from workers.data.tokenization import Piece, ShardTask, Side, cut_example, hash_prompt
from workers.model.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_ROWS = 16
_TARGET, _CONTEXT, _SPECIAL = "green", "dim", "bold"
_OPEN, _CLOSE = "\u27e6", "\u27e7"


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


def inspect(config: RunConfig, domain: str | None, split: Side, num_rows: int, as_json: bool, console: Console) -> None:
    """Show what the model will see, example by example, in the order of the files, as `raymix inspect` does.

    `num_rows` is per domain: refused rows count, and so does each piece of a row that is split. ConfigError if there is
    no such domain; ValueError if the tokenizer does not load, or files cannot be read (raised after all other domains).
    """
    names = [domain] if domain is not None else list(config.domains)
    if domain is not None and domain not in config.domains:
        near = difflib.get_close_matches(domain, config.domains, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"the domains are {', '.join(config.domains)}"
        raise ConfigError([f"--domain {domain}: no such domain; {hint}"])
    tokenizer = load_tokenizer(config.model.with_absolute_paths())
    freeze_date(tokenizer, config.cache_dir.resolve())
    fingerprint = fingerprint_tokenizer(tokenizer)
    notes = Console(stderr=True, soft_wrap=True, highlight=False) if as_json else console
    if not as_json:
        print_legend(console)
    faults = []
    for name in names:
        try:
            plan = plan_domain(name, config.domains[name].with_absolute_paths(), config.data, fingerprint)
        except ValueError as error:
            faults.append(str(error))
            continue
        for note in _show(plan, config, split, num_rows, tokenizer, None if as_json else console):
            notes.print(f"{name}: {note}", markup=False, highlight=False, soft_wrap=True)
    if faults:
        raise ValueError("\n".join(faults))


def _show(
    plan: DomainPlan,
    config: RunConfig,
    split: Side,
    num_rows: int,
    tokenizer: "PreTrainedTokenizerBase",
    console: Console | None,
) -> list[str]:
    """Show a domain's rows, as JSON if `console` is None, and return notes about them."""
    if split == "train" and not plan.is_trained:
        return ["only measured, so it has no training rows; use --split eval to see its held-out rows"]
    num_excluded = num_shown = 0
    for seen in read_split(plan, split, config.data, tokenizer):
        if not isinstance(seen, SeenExample | RefusedRow):
            num_excluded += 1
            continue
        if console is None:
            sys.stdout.write(to_json(seen, tokenizer) + "\n")
        else:
            print_seen(seen, tokenizer, console)
        num_shown += 1
        if num_shown == num_rows:
            break
    notes = []
    if num_excluded:
        notes.append(f"{num_excluded:,} rows in between were left out by `exclude`")
    if not num_shown:
        notes.append(f"no rows in the {split} split")
    if split == "train" and plan.sample.is_part:
        notes.append("`fraction` or `count` selects part of the examples of all files, maybe not every row above")
    return notes


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


def to_json(seen: SeenExample | RefusedRow, tokenizer: "PreTrainedTokenizerBase") -> str:
    """One JSON object: `domain, split, file, line`, then `text, targets, num_tokens, num_targets`, or `refused`."""
    record: dict[str, Any] = {"domain": seen.domain, "split": seen.split, "file": seen.file, "line": seen.line}
    if isinstance(seen, RefusedRow):
        return json.dumps(record | {"refused": seen.reason}, ensure_ascii=False)
    tokens, piece = seen.piece.tokens, seen.piece
    runs = groupby(zip(tokens.loss_mask.tolist(), tokens.input_ids.tolist(), strict=True), key=lambda pair: pair[0])
    record |= {
        "text": _decode(tokenizer, tokens.input_ids.tolist()),
        "targets": [_decode(tokenizer, [number for _, number in run]) for is_target, run in runs if is_target],
        "num_tokens": len(tokens.input_ids),
        "num_targets": int(tokens.loss_mask.sum()),
    }
    if tokens.dropped:
        record["dropped"] = list(tokens.dropped)
    if piece.count > 1:
        record |= {
            "piece": piece.number,
            "num_pieces": piece.count,
            "num_tokens_whole": len(seen.whole.input_ids),
            "num_targets_whole": int(seen.whole.loss_mask.sum()),
        }
    return json.dumps(record, ensure_ascii=False)


def print_legend(console: Console) -> None:
    if _has_colors(console):
        parts = (("targets", _TARGET), " are learned, ", ("the rest", _CONTEXT), " is context, ")
        console.print(Text.assemble(*parts, ("control tokens", _SPECIAL), " are bold\n"), soft_wrap=True)
    else:
        console.print(
            Text(f"targets, which are learned, are in {_OPEN}{_CLOSE}; the rest is context\n"), soft_wrap=True
        )


def print_seen(seen: SeenExample | RefusedRow, tokenizer: "PreTrainedTokenizerBase", console: Console) -> None:
    place = f"{seen.domain}, {seen.split}  {seen.file}:{seen.line}"
    if isinstance(seen, RefusedRow):
        line = Text.assemble((printable(place), "bold"), "  ", (f"refused: {printable(seen.reason)}", "yellow"), "\n")
        console.print(line, soft_wrap=True)
        return
    tokens, piece = seen.piece.tokens, seen.piece
    cut = ""
    if piece.count > 1:
        cut = f"  piece {piece.number} of {piece.count} (whole example: {_size(seen.whole)})"
    dropped = f"  the template drops: {', '.join(tokens.dropped)}" if tokens.dropped else ""
    head = Text.assemble((printable(place), "bold"), f"  {_size(tokens)}", (cut + printable(dropped), "yellow"))
    console.print(head, soft_wrap=True)
    console.print(_text(tokens, tokenizer, _has_colors(console)), soft_wrap=True)
    console.print()


def _size(tokens: Tokens) -> str:
    return f"{len(tokens.input_ids):,} tokens, {int(tokens.loss_mask.sum()):,} targets"


def _text(tokens: Tokens, tokenizer: "PreTrainedTokenizerBase", has_colors: bool) -> Text:
    text = Text()
    was_target = False
    for part, is_target, is_special in _parts(tokens, tokenizer):
        if not has_colors and is_target != was_target:
            text.append(_OPEN if is_target else _CLOSE)
        style = _TARGET if is_target else _CONTEXT
        text.append(_shown(part), style=f"{style} {_SPECIAL}" if is_special else style)
        was_target = is_target
    return text.append(_CLOSE) if was_target and not has_colors else text


def _parts(tokens: Tokens, tokenizer: "PreTrainedTokenizerBase") -> Iterator[tuple[str, bool, bool]]:
    """(text, is it a target, is it a control token) in order; joined, the parts are the whole text.

    A part is what its tokens add to the text before them: decoded alone, its first word might lose its space.
    """
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = tokens.input_ids.tolist()
    kinds = [(is_target, number in special) for number, is_target in zip(ids, tokens.loss_mask.tolist(), strict=True)]
    end, before = 0, ""
    for (is_target, is_special), run in groupby(kinds):
        start, end = end, end + len(list(run))
        until = _decode(tokenizer, ids[:end])
        is_longer = until.startswith(before)
        yield until[len(before) :] if is_longer else _decode(tokenizer, ids[start:end]), is_target, is_special
        before = until


def _decode(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _shown(text: str) -> str:
    """The text with terminal control characters escaped; line breaks and tabs are kept."""
    return "\n".join("\t".join(printable(cell) for cell in line.split("\t")) for line in text.split("\n"))


def _has_colors(console: Console) -> bool:
    return console.is_terminal and console.color_system is not None and not console.no_color
