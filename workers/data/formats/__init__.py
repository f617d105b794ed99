"""Rows in common layouts -> Examples.

`layouts.py` has the layouts, `turns.py` reads messages, tools and calls, `example.py` knows which answers are trained
on, `detection.py` tells layouts apart and `refusals.py` knows what must not be guessed.
"""

from collections.abc import Mapping
from typing import Any

from workers.config.data import TrainOn
from workers.data.formats.example import Example, find_learned, read_switch, says_something
from workers.data.formats.layouts import FORMATS, FURTHER, TOOLS_NAMES
from workers.data.formats.turns import Talk
from workers.data.formats.values import Row, RowError, is_blank, kind_of, text_of

_OTHER_WEIGHT = "give 0 or 1, or, if the column means something else, name another one: fields: {weight: NAME}"


def read_row(
    line: int,
    row: Any,
    format_name: str,
    fields: Mapping[str, str],
    *,
    train_on: TrainOn = "all",
    has_template: bool = False,
    is_columnar: bool = False,
) -> Example:
    """The Example in a row; RowError with the reason if there is none.

    Args:
        fields: field names of the format -> field names of the row, if they differ.
        train_on: which answers of a conversation are trained on.
        has_template: whether a document already includes its chat template.
        is_columnar: whether nulls in calls and tools are filler of a columnar file.
    """
    if not isinstance(row, dict):
        raise RowError(f"not an object: the row is {kind_of(row)}")
    layout = FORMATS[format_name]
    if (fields or "weight" in row) and not _is_wanted(row, fields):
        raise RowError("no answer to learn from (the row has weight 0)")
    if layout.read is None:
        text = text_of(row, fields.get("text", "text"))
        if not text.strip():
            raise RowError("empty text")
        return Example(line, text=text, has_template=has_template)
    has_further = bool(fields) or not FURTHER.isdisjoint(row)
    talk = Talk(has_further, is_columnar)
    layout.read(row, lambda name: fields.get(name, name), talk)
    if has_further:
        _offer_tools(talk, row, fields)
    messages = talk.messages
    for message in messages:
        if message["role"] == "assistant" and (message["content"].strip() or says_something(message)):
            break
    else:
        raise RowError("no assistant text")
    learned = find_learned(messages, talk.marks, train_on) if talk.marks or train_on == "last" else ()
    return Example(line, messages=tuple(messages), tools=tuple(talk.tools), learned=learned)


def _is_wanted(row: Row, fields: Mapping[str, str]) -> bool:
    name = fields.get("weight", "weight")
    return is_blank(row.get(name)) or read_switch(row[name], f"the row's `{name}`", _OTHER_WEIGHT)


def _offer_tools(talk: Talk, row: Row, fields: Mapping[str, str]) -> None:
    for name in (fields["tools"],) if "tools" in fields else TOOLS_NAMES:
        if not is_blank(row.get(name)):
            talk.offer(row[name], f"`{name}`")
