"""Which parts of a conversation its rendered text lacks: tools and calls (refused), and others (named)."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from workers.data.formats import Message
from workers.data.message_forms import text_of, without

Tools = Sequence[dict[str, Any]]
Render = Callable[[Sequence[Message], Tools], str | None]
"""The text of a conversation; None if the template raises an error."""

_OTHER_RESULT = "Another result"


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
            bare = {"content": "", **without(message, "tool_calls")}
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
