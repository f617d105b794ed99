"""The forms in which different templates expect the same conversation."""

import json
from collections.abc import Iterator, Sequence

from workers.data.formats import Message

Turn = tuple[Message, bool]
"""A message, and whether it is trained on."""


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


def without(message: Message, key: str) -> Message:
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
    return without(message, "content") if "tool_calls" in message and not message["content"] else message
