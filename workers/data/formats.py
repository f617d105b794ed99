"""Layouts of a row: each becomes an Example, a conversation or a plain document.

A new layout is one function and one line in `FORMATS`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.config import Exclusion
from workers.data.files import RowError

Row = Mapping[str, Any]
Names = Callable[[str], str]  # field name of the format -> field name of the file

Message = dict[str, Any]
"""As a chat template takes it: `role` and `content` (text), and where the row has them `reasoning_content` (text),
`tool_calls` ([{"id", "type": "function", "function": {"name", "arguments": an object}}]), `tool_call_id` and `name`."""

ROLES = ("system", "user", "assistant")
SHAREGPT_ROLES = {"system": "system", "human": "user", "user": "user"} | dict.fromkeys(
    ("gpt", "assistant", "chatgpt", "bard", "bing", "model"), "assistant"
)


@dataclass(frozen=True, slots=True)
class Example:
    """One good row: `messages` of a conversation, or the `text` of a document (then `messages` is empty)."""

    line: int
    messages: tuple[Message, ...] = ()
    text: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    """JSON schemas of the tools that the conversation may call, as chat templates take them."""
    learned: tuple[bool, ...] = ()
    """Whether each message is one to learn; empty: every answer is."""
    has_template: bool = False
    """Whether the text carries its chat template already: its control tokens are meant as such."""

    @property
    def prompt(self) -> str:
        """What is asked: all messages before the last answer, or the whole document; case and spacing folded away."""
        texts = [message["content"] for message in self.messages] if self.messages else [self.text]
        if self.messages:
            roles = [message["role"] for message in self.messages]
            texts = texts[: len(roles) - 1 - roles[::-1].index("assistant")]
        return "\x1f".join(" ".join(text.casefold().split()) for text in texts)

    @property
    def texts(self) -> list[str]:
        """What was written, without the roles."""
        return [message["content"] for message in self.messages] or [self.text]

    @property
    def num_characters(self) -> int:
        """Size of the text, to keep batches of examples small in memory."""
        return sum(len(text) for text in self.texts)


@dataclass(frozen=True, slots=True)
class ExcludedRow:
    """A good row that the domain's `exclude` leaves out."""


def _messages(row: Row, names: Names) -> list[dict[str, str]]:
    return _turns(row, names("messages"), names("role"), names("content"), {role: role for role in ROLES})


def _sharegpt(row: Row, names: Names) -> list[dict[str, str]]:
    turns = _turns(row, names("conversations"), names("from"), names("value"), SHAREGPT_ROLES)
    return _system(row, names) + turns


def _alpaca(row: Row, names: Names) -> list[dict[str, str]]:
    instruction, further = _text(row, names("instruction")), _optional_text(row, names("input"))
    prompt = f"{instruction}\n\n{further}" if further.strip() else instruction
    return [*_system(row, names), _message("user", prompt), _message("assistant", _text(row, names("output")))]


def _prompt_completion(row: Row, names: Names) -> list[dict[str, str]]:
    return [
        _message("user", _text(row, names("prompt"))),
        _message("assistant", _text(row, names("completion"))),
    ]


@dataclass(frozen=True)
class Format:
    """How to read one layout: the fields that mark it, the fields it may have, and the way to messages."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Row, Names], list[dict[str, str]]] | None  # None: a plain document


FORMATS = {
    "messages": Format(("messages",), ("role", "content"), _messages),
    "sharegpt": Format(("conversations",), ("from", "value", "system"), _sharegpt),
    "alpaca": Format(("instruction", "output"), ("input", "system"), _alpaca),
    "prompt_completion": Format(("prompt", "completion"), (), _prompt_completion),
    "text": Format(("text",), (), None),
}


def read_row(line: int, row: Any, format_name: str, fields: Mapping[str, str]) -> Example:
    """The Example that a row holds; RowError with the reason where it holds none."""
    if not isinstance(row, dict):
        raise RowError(f"not an object: the row is {_kind(row)}")
    layout = FORMATS[format_name]
    if layout.read is None:
        text = _text(row, fields.get("text", "text"))
        if not text.strip():
            raise RowError("empty text")
        return Example(line, text=text)
    messages = layout.read(row, lambda name: fields.get(name, name))
    if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
        raise RowError("no assistant text")
    return Example(line, messages=tuple(messages))


def is_excluded(row: Row, example: Example, exclude: Sequence[Exclusion]) -> bool:
    """Whether one of the patterns is found in its field, or where it names none in the example's texts."""
    return any(
        re.search(exclusion.pattern, text, re.IGNORECASE)
        for exclusion in exclude
        for text in (example.texts if exclusion.field is None else _texts_of(row.get(exclusion.field)))
    )


def _texts_of(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]


def check_fields(format_name: str, fields: Mapping[str, str]) -> None:
    """Refuse field names that the format (any format, for `auto`) does not have."""
    layouts = FORMATS if format_name == "auto" else {format_name: FORMATS[format_name]}
    if not any(_knows(layout, fields) for layout in layouts.values()):
        known = "; ".join(f"{name}: {', '.join(layout.required + layout.optional)}" for name, layout in layouts.items())
        raise ValueError(f"`fields` has the names {sorted(fields)}, but the fields are {known}")


def detect_format(rows: list[Any], fields: Mapping[str, str]) -> str | None:
    """The format that most of these rows have; None where not one row has the fields of any format."""
    votes = dict.fromkeys((name for name, layout in FORMATS.items() if _knows(layout, fields)), 0)
    for row in rows:
        for name in votes:
            if isinstance(row, dict) and all(fields.get(key, key) in row for key in FORMATS[name].required):
                votes[name] += 1
                break
    best = max(votes, key=votes.__getitem__)
    return best if votes[best] else None


def _knows(layout: Format, fields: Mapping[str, str]) -> bool:
    return set(fields) <= {*layout.required, *layout.optional}


def _turns(row: Row, list_name: str, role_name: str, text_name: str, roles: Mapping[str, str]) -> list[dict[str, str]]:
    turns = _field(row, list_name)
    if not isinstance(turns, list):
        raise RowError(f"wrong type: `{list_name}` is {_kind(turns)}, not a list")
    messages = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise RowError(f"wrong type: message {number} is {_kind(turn)}, not an object")
        if turn.get("tool_calls"):
            raise RowError(f"tool calls are not supported: message {number}")
        role = _text(turn, role_name, f"message {number}: ")
        if role not in roles:
            raise RowError(f"unknown role: message {number} is by {role[:40]!r}; known are {', '.join(roles)}")
        messages.append(_message(roles[role], _text(turn, text_name, f"message {number}: ")))
    return messages


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _system(row: Row, names: Names) -> list[dict[str, str]]:
    system = _optional_text(row, names("system"))
    return [_message("system", system)] if system.strip() else []


def _optional_text(row: Row, name: str) -> str:
    return "" if row.get(name) is None else _text(row, name)


def _text(row: Row, name: str, where: str = "") -> str:
    text = _field(row, name, where)
    if not isinstance(text, str):
        raise RowError(f"wrong type: {where}`{name}` is {_kind(text)}, not text")
    if "\0" in text:
        raise RowError(f"NUL character: {where}`{name}`")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RowError(f"half a surrogate pair: {where}`{name}`, character {error.start}") from None
    return text


def _field(row: Row, name: str, where: str = "") -> Any:
    if name not in row:
        found = ", ".join(repr(str(key)[:40]) for key in list(row)[:6])
        raise RowError(f"missing field: {where}`{name}`; there is {found or 'nothing'}")
    return row[name]


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
