"""What a usable row becomes: an Example, unless a pattern of its domain leaves it out.

Which of its answers are trained on is said by marks in the messages and by `train_on`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.config.data import Exclusion, TrainOn
from workers.data.formats.values import Row, RowError, is_blank, kind_of

Message = dict[str, Any]
"""As a chat template takes it: `role` and `content` (text), and if the row has them `reasoning_content` (text),
`tool_calls` ([{"id", "type": "function", "function": {"name", "arguments": an object}}]), `tool_call_id` and `name`."""

Tool = dict[str, Any]
"""JSON schema of a function that may be called: {"type": "function", "function": {"name", ...}}."""

# Keys of a message that include it or leave it out.
_LEARN = ("weight", "loss_weight", "loss_scale", "train", "training", "trainable", "learn", "loss")
_LEAVE = ("masked", "mask")
# Parts of an answer, by their characters.
_PARTS = ("train_detail", "training_detail")
# Whether an annotator liked the answer, which is not the same as whether to train on it.
_OPINIONS = ("label", "kto_tag", "desirable", "chosen", "rejected")
MARKS = frozenset((*_LEARN, *_LEAVE, *_PARTS, *_OPINIONS))
"""Keys of a message that say whether it is trained on."""

_WORDS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


@dataclass(frozen=True, slots=True)
class Example:
    """One usable row: the `messages` of a conversation, or the `text` of a document (then `messages` is empty)."""

    line: int
    messages: tuple[Message, ...] = ()
    text: str = ""
    tools: tuple[Tool, ...] = ()  # tools that the conversation may call
    learned: tuple[bool, ...] = ()  # whether each message is trained on; empty: every answer is
    has_template: bool = False
    """Whether the text already includes its chat template, so that its control tokens are meant as such."""

    @property
    def prompt(self) -> str:
        """All messages before the last answer, or the whole document, regardless of case and spacing.

        Calls, their results and tools are part of it, thoughts are not. The order of the roles is part of it if
        it is not the usual one (a system message or none, then user and assistant in turn).
        """
        if not self.messages:
            return _folded(self.text)
        roles = [message["role"] for message in self.messages]
        asked = self.messages[: len(roles) - 1 - roles[::-1].index("assistant")]
        parts = [_folded(text) for message in asked for text in (message["content"], *_call_texts(message))]
        if self.tools or not _is_usual([message["role"] for message in asked]) or len(parts) > len(asked):
            shape = [[message["role"], len(message.get("tool_calls", ()))] for message in asked]
            parts.append(json.dumps([shape, self.tools], sort_keys=True))
        return "\x1f".join(parts)

    @property
    def texts(self) -> list[str]:
        """All texts, without roles: contents, thoughts and calls."""
        if not self.messages:
            return [self.text]
        return [text for message in self.messages for text in _texts_of(message)]

    @property
    def num_characters(self) -> int:
        """Size of texts and tools, to bound the memory of a batch of examples."""
        return sum(map(len, self.texts)) + (len(json.dumps(self.tools)) if self.tools else 0)


@dataclass(frozen=True, slots=True)
class ExcludedRow:
    """A usable row that the domain's `exclude` leaves out."""

    line: int


def says_something(message: Message) -> bool:
    return bool(message["content"].strip() or "tool_calls" in message or "reasoning_content" in message)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _is_usual(roles: list[str]) -> bool:
    turns = roles[1:] if roles[:1] == ["system"] else roles
    return all(role == ("assistant" if index % 2 else "user") for index, role in enumerate(turns))


def _texts_of(message: Message) -> list[str]:
    if len(message) == 2:
        return [message["content"]]
    further = [*([message["reasoning_content"]] if "reasoning_content" in message else []), *_call_texts(message)]
    return [message["content"], *further] if message["content"] or not further else further


def _call_texts(message: Message) -> Iterator[str]:
    for call in message.get("tool_calls", ()):
        function = call["function"]
        yield f"{function['name']} {json.dumps(function['arguments'], ensure_ascii=False, sort_keys=True)}"


def is_excluded(row: Row, example: Example | None, exclude: Sequence[Exclusion]) -> bool:
    """Whether a pattern matches its field or, without a field, the example's texts; with example None, only fields."""
    return any(
        re.search(exclusion.pattern, text, re.IGNORECASE)
        for exclusion in exclude
        for text in _searched(row, example, exclusion.field)
    )


def shown_value(value: Any) -> str | None:
    """The text of a value in which patterns are searched; booleans and numbers as in JSON."""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return value if isinstance(value, str) else None


def _searched(row: Row, example: Example | None, field: str | None) -> list[str]:
    if field is None:
        return [] if example is None else example.texts
    value = row.get(field)
    values = value if isinstance(value, list) else [value]
    return [text for text in map(shown_value, values) if text is not None]


def read_mark(turn: Row, role: str, where: str) -> bool | None:
    """Whether a message is marked to be trained on; None without a mark."""
    said = {name: read_switch(turn[name], f"{where}: `{name}`") for name in _LEARN if not is_blank(turn.get(name))}
    said |= {name: not read_switch(turn[name], f"{where}: `{name}`") for name in _LEAVE if not is_blank(turn.get(name))}
    if parts := [name for name in _PARTS if not is_blank(turn.get(name))]:
        raise RowError(f"parts of an answer are marked: {where} has `{parts[0]}`; raymix trains on whole answers only")
    if opinions := [name for name in _OPINIONS if isinstance(turn.get(name), bool)]:
        raise RowError(
            f"preference data: {where} has `{opinions[0]}`; use `weight` 0 or 1 to say whether to train on the answer"
        )
    if len(set(said.values())) > 1:
        raise RowError(f"contradiction: {where} is included and excluded, by {', '.join(f'`{name}`' for name in said)}")
    if not said:
        return None
    name, is_learned = next(iter(said.items()))
    if is_learned and role != "assistant":
        raise RowError(
            f"only answers are trained on: {where} is by the {role}, but `{name}` includes it; remove `{name}`"
        )
    return is_learned


def read_switch(value: Any, place: str, remedy: str = "give 0 or 1") -> bool:
    """A weight as a boolean; RowError for any value other than 0 and 1."""
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), value)
    if isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1)):
        return bool(value)
    if isinstance(value, int | float):
        raise RowError(f"weight other than 0 and 1: {place} is {value}; raymix has no fractional weights, {remedy}")
    raise RowError(f"wrong type: {place} is {kind_of(value)}, not 0, 1, true or false; {remedy}")


def find_learned(messages: Sequence[Message], marks: Mapping[int, bool], train_on: TrainOn) -> tuple[bool, ...]:
    """Whether each message is trained on, () if every answer is; RowError if nothing is left to train on."""
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    wanted = set(answers[-1:] if train_on == "last" else answers)
    learned = tuple(index in wanted and marks.get(index, True) for index in range(len(messages)))
    if not any(is_learned and says_something(message) for is_learned, message in zip(learned, messages, strict=True)):
        why = "all have weight 0"
        if train_on == "last":
            is_blank_one = marks.get(answers[-1], True)
            why = f"train_on is last, and the last answer {'is blank' if is_blank_one else 'has weight 0'}"
        raise RowError(f"no answer to learn from ({why})")
    return () if all(learned[index] for index in answers) else learned
