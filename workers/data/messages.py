"""Messages as chat templates take them: the forms in which different templates expect the same conversation, marks that
show where a message is in the rendered text, and which parts the text lacks: tools and calls (refused), others (named).
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from workers.data.formats.example import Message

Tools = Sequence[dict[str, Any]]
Turn = tuple[Message, bool]
"""A message, and whether it is trained on."""
Render = Callable[[Sequence[Message], Tools], str | None]
"""The text of a conversation; None if the template raises an error."""

# The private use planes. Few texts contain their characters, but some do: icons of programmers' fonts.
_FIRST_MARK, _LAST_MARK = 0xF0000, 0x10FFFD
_MARK = re.compile(f"[{chr(_FIRST_MARK)}-{chr(_LAST_MARK)}]")
_OTHER_RESULT = "Another result"


def with_system(turns: Sequence[Turn]) -> list[Turn]:
    """Developer messages as system messages, merged with one right before them: templates accept only one."""
    result: list[Turn] = []
    for message, is_learned in turns:
        if message["role"] != "developer":
            result.append((message, is_learned))
            continue
        text = message["content"]
        if result and result[-1][0]["role"] == "system":
            text = f"{result.pop()[0]['content']}\n\n{text}"
        result.append(({"role": "system", "content": text}, False))
    return result


def forms_of(messages: Sequence[Message]) -> Iterator[tuple[Message, ...]]:
    """The messages as they are; with arguments of calls as JSON text; without empty content beside a call; and with
    contents as lists of parts."""
    yield tuple(messages)
    if any("tool_calls" in message for message in messages):
        as_text = tuple(_with_text_arguments(message) for message in messages)
        yield as_text
        yield tuple(_without_empty_content(message) for message in messages)
        yield tuple(_without_empty_content(message) for message in as_text)
    yield tuple({**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages)


def has_written_out_parts(messages: Sequence[Message], text: str) -> bool:
    """Whether a template that does not know parts wrote the lists themselves into the text."""
    has_parts = not isinstance(messages[-1].get("content", ""), str)
    return has_parts and ("'type': 'text'" in text or '"type": "text"' in text)


def text_of(message: Message) -> str:
    content = message.get("content", "")
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _without(message: Message, key: str) -> Message:
    return {name: value for name, value in message.items() if name != key}


def _with_text_arguments(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _without_empty_content(message: Message) -> Message:
    return _without(message, "content") if "tool_calls" in message and not message["content"] else message


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


def find_taken(messages: Sequence[Message], tools: Tools) -> set[str]:
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


def find_missing(render: Render, messages: Sequence[Message], tools: Tools, text: str) -> str | None:
    """Which of tools, calls and their results the text lacks; None if it has all. Their words may be in it for another
    reason, so it is compared with renderings without them."""

    def shows(names: list[str], other: Sequence[Message], other_tools: Tools) -> bool:
        return render(other, other_tools) != text and all(name in text for name in names)

    if tools and not shows(_names(tools), messages, ()):
        return _left_out("the tools", _names(tools))
    for index, message in enumerate(messages):
        before, after = messages[:index], messages[index + 1 :]
        if calls := message.get("tool_calls"):
            bare = {"content": "", **_without(message, "tool_calls")}
            fewer = {**bare, "tool_calls": calls[:-1]} if calls[1:] else bare
            if not shows(_names(calls), [*before, fewer, *after], tools):
                return _left_out("a tool call", _names(calls))
        if message["role"] == "tool":
            result = text_of(message)
            other = {**message, "content": _OTHER_RESULT}
            if not _is_in(result, text) or render([*before, other, *after], tools) == text:
                return _left_out("the result of a tool", [result.strip()])
    return None


def find_dropped(messages: Sequence[Message], text: str) -> Iterator[str]:
    """The other kinds of content that the text lacks, each once."""
    found: dict[str, bool] = {}
    for message in messages:
        content = message["content"]
        thought, closed, answer = content.rpartition("</think>")
        if message["role"] == "assistant" and closed:
            thought = thought.rpartition("<think>")[2]
            found["reasoning"] = found.get("reasoning") or not _is_in(thought, text)
            content = answer
        if not _is_in(content, text):
            found[f"{message['role']} message"] = True
        if not _is_in(message.get("reasoning_content", ""), text):
            found["reasoning"] = True
    yield from (kind for kind, is_dropped in found.items() if is_dropped)


def _left_out(what: str, names: Sequence[str]) -> str:
    return (
        f"the chat template omits {what}: {', '.join(names)[:80]}; set model.chat_template to a template that "
        "renders it, or leave the row out"
    )


def _names(of: Sequence[dict[str, Any]]) -> list[str]:
    return [str(one.get("function", one).get("name", "")) for one in of]


def _is_in(part: str, text: str) -> bool:
    """Whether a part of a message is in the text, plain or as JSON; templates trim their input."""
    core = part.strip()
    if not core or core in text:
        return True
    return json.dumps(core, ensure_ascii=False)[1:-1] in text or json.dumps(core)[1:-1] in text
