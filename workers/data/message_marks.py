"""Marks in messages: unused characters around a message's text, to find it in what a template renders."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workers.data.formats import Message
from workers.data.message_forms import text_of

# The private use planes. Few texts contain their characters, but some do: icons of programmers' fonts.
_FIRST_MARK, _LAST_MARK = 0xF0000, 0x10FFFD
_MARK = re.compile(f"[{chr(_FIRST_MARK)}-{chr(_LAST_MARK)}]")


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a rendered text where a part of a message begins or ends."""

    at: int
    number: int  # even at the start of a part, the next odd number at its end; the same in every rendering
    message: int
    is_call: bool  # whether the part is the name of a call


@dataclass(frozen=True, slots=True)
class Located:
    """A rendered text and the marks in it, in order."""

    text: str
    marks: list[Mark]


def find_taken(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> set[str]:
    """The characters that cannot be marks because the conversation contains them."""
    return set(_MARK.findall(json.dumps([messages, tools], ensure_ascii=False)))


class Marker:
    """Puts marks into messages and takes them out of the rendered text."""

    def __init__(self, taken: set[str]) -> None:

        self._free = (chr(code) for code in range(_FIRST_MARK, _LAST_MARK + 1) if chr(code) not in taken)
        self._numbers: dict[str, int] = {}  # of each mark
        self._owners: list[tuple[int, bool]] = []  # of each mark: its message, and whether it is of a call's name

    def mark(self, message: Message, index: int) -> Message:
        """Marks around text, thoughts and names of calls, inside the spaces that templates trim."""
        marked: Message = {}
        if "reasoning_content" in message:
            marked["reasoning_content"] = self._around(message["reasoning_content"], index)
        if "content" in message:
            text = self._around(text_of(message), index)
            marked["content"] = text if isinstance(message["content"], str) else [{"type": "text", "text": text}]
        if "tool_calls" in message:
            functions = [call["function"] for call in message["tool_calls"]]
            names = [self._around(function["name"], index, is_call=True) for function in functions]
            marked["tool_calls"] = [
                {**call, "function": {**function, "name": name}}
                for call, function, name in zip(message["tool_calls"], functions, names, strict=True)
            ]
        return {**message, **marked}

    def _around(self, text: str, index: int, is_call: bool = False) -> str:
        core = text.strip()
        if not core:
            return text
        start, end = next(self._free), next(self._free)
        self._numbers |= {start: len(self._owners), end: len(self._owners) + 1}
        self._owners += [(index, is_call)] * 2
        return text.replace(core, f"{start}{core}{end}", 1)

    def read(self, marked: str) -> Located:
        """The text without the marks, and where they were; the first place of a part that occurs several times."""
        marks: dict[int, Mark] = {}
        places = [found for found in _MARK.finditer(marked) if found.group() in self._numbers]
        for count, found in enumerate(places):
            number = self._numbers[found.group()]
            marks.setdefault(number, Mark(found.start() - count, number, *self._owners[number]))
        text = _MARK.sub(lambda found: "" if found.group() in self._numbers else found.group(), marked)
        return Located(text, list(marks.values()))
