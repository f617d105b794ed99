"""Lists of messages with any common keys and roles, and the tools and calls in them -> a Talk, in the form that chat
templates take.
"""

from dataclasses import dataclass, field
from typing import Any

from workers.data.formats.example import MARKS, Message, Tool, read_mark
from workers.data.formats.values import (
    Row,
    RowError,
    check_nested,
    check_text,
    field_of,
    holds_json_list,
    is_blank,
    is_clean,
    kind_of,
    parse_json,
    text_of,
    without_nulls,
)

Call = dict[str, Any]

_ARGUMENTS = ("arguments", "parameters", "args")
ROLES = {
    **{role: role for role in ("system", "developer")},
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bing", "model", "bot", "ai"), "assistant"),
    **dict.fromkeys(
        ("tool", "function", "observation", "tool_response", "tool_result", "function_response", "ipython"), "tool"
    ),
}
"""Roles by their names in files, in lower case."""
_CALL_ROLES = ("function_call", "tool_call")
_ROLE_NAMES, _TEXT_NAMES = ("role", "from"), ("content", "value", "text")
REASONING = ("reasoning_content", "thinking", "reasoning", "reasoning_text", "thought", "thoughts")
"""Fields for what the assistant thought before it answered."""
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
"""Fields for content that is not text."""
_TEXT_PARTS = ("text", "input_text", "output_text")
_THOUGHT_PARTS = ("thinking", "reasoning")
_PART_KINDS = {
    **dict.fromkeys(("image", "image_url", "input_image"), "an image"),
    **dict.fromkeys(("video", "video_url", "input_video"), "a video"),
    **dict.fromkeys(("audio", "audio_url", "input_audio"), "a sound"),
    **dict.fromkeys(("file", "input_file", "document"), "a file"),
}


def read_tools(value: Any, place: str, is_columnar: bool) -> list[Tool]:
    """Tools from a list, or a list as JSON; each wrapped as a function or given flat. `place` names it in messages.

    `is_columnar`: whether nulls are filler of a columnar file, in which every object has the keys of all.
    """
    if isinstance(value, str):
        return read_tools(parse_json(value, place), place, is_columnar=False)  # text has no filler
    if not isinstance(value, list):
        raise RowError(f"wrong type: {place} is {kind_of(value)}, not a list")
    return [_read_tool(tool, f"tool {number} of {place}", is_columnar) for number, tool in enumerate(value, start=1)]


def read_calls(value: Any, where: str, is_columnar: bool) -> list[Call]:
    """The calls of one message, from a call or a list of calls, or either as JSON; `where` names the message."""
    given = parse_json(value, f"{where}: the call") if isinstance(value, str) else value
    calls = given if isinstance(given, list) else [given]
    if not calls:
        raise RowError(f"not a tool call: {where} calls nothing")
    return [_read_call(call, f"{where}, call {number}", is_columnar) for number, call in enumerate(calls, start=1)]


def _read_tool(given: Any, place: str, is_columnar: bool) -> Tool:
    tool = parse_json(given, place) if isinstance(given, str) else given
    if not isinstance(tool, dict):
        raise RowError(f"not a tool: {place} is {kind_of(tool)}")
    check_nested(tool, place)
    tool = without_nulls(tool) if is_columnar and not isinstance(given, str) else tool
    if tool.get("type", "function") not in ("function", None):
        raise RowError(f"not a tool: {place} is a {str(tool['type'])[:40]}; raymix supports only functions")
    if not isinstance(tool.get("function"), dict):
        tool = {"type": "function", "function": {key: part for key, part in tool.items() if key != "type"}}
    name = tool["function"].get("name")
    if not isinstance(name, str) or not name:
        raise RowError(f"not a tool: {place} has no name")
    return tool if "type" in tool else {"type": "function", **tool}


def _read_call(given: Any, where: str, is_columnar: bool) -> Call:
    call = parse_json(given, where) if isinstance(given, str) else given
    if not isinstance(call, dict):
        raise RowError(f"not a tool call: {where} is {kind_of(call)}, not an object")
    if call.get("type", "function") not in ("function", None):
        raise RowError(f"not a tool call: {where} is a {str(call['type'])[:40]}; raymix supports only functions")
    function = call["function"] if isinstance(call.get("function"), dict) else call
    name = function.get("name")
    if name is None and isinstance(call.get("function"), str):
        name = call["function"]
    if not isinstance(name, str) or not name:
        raise RowError(f"not a tool call: {where} names no function")
    check_nested(name, where)
    arguments = _read_arguments(function, name, where, is_columnar)
    identity = call.get("id")
    if identity is not None and not isinstance(identity, str | int):
        raise RowError(f"wrong type: {where}: `id` is {kind_of(identity)}, not text")
    check_nested(identity, where)
    known = {} if identity in (None, "") else {"id": str(identity)}
    return {**known, "type": "function", "function": {"name": name, "arguments": arguments}}


def _read_arguments(function: Row, name: str, where: str, is_columnar: bool) -> dict[str, Any]:
    given = next((function[key] for key in _ARGUMENTS if function.get(key) is not None), None)
    if is_blank(given):
        return {}
    place = f"{where}: the arguments of {name[:40]!r}"
    arguments = parse_json(given, place) if isinstance(given, str) else given
    if not isinstance(arguments, dict):
        raise RowError(f"not a tool call: {place} are {kind_of(arguments)}, not an object")
    check_nested(arguments, place)
    return without_nulls(arguments) if is_columnar and not isinstance(given, str) else arguments


@dataclass(slots=True)
class Talk:
    """A conversation being read."""

    has_further: bool  # whether the row may have more than its format's required fields; most do not
    is_columnar: bool  # whether nulls in calls and tools are filler of a columnar file
    messages: list[Message] = field(default_factory=list)  # so far
    marks: dict[int, bool] = field(default_factory=dict)  # whether a message is trained on, for those that say so
    tools: list[Tool] = field(default_factory=list)  # that it may call

    def say(self, role: str, content: str) -> None:
        self.messages.append({"role": role, "content": content})

    def lead(self, system: str) -> None:
        """Put a system message first; an existing one must be the same."""
        if not system.strip():
            return
        first = self.messages[0] if self.messages else None
        if first is None or first["role"] not in ("system", "developer"):
            self.messages.insert(0, {"role": "system", "content": system})
            self.marks = {index + 1: mark for index, mark in self.marks.items()}
        elif first["content"].strip() != system.strip():
            raise RowError("two system messages: the row's and that in its messages differ")

    def offer(self, value: Any, place: str) -> None:
        """Set the tools of the conversation; if given twice, they must be the same."""
        tools = read_tools(value, place, self.is_columnar)
        if self.tools and tools != self.tools:
            raise RowError(f"two lists of tools: {place} and an earlier one differ")
        self.tools = tools


def add_turns(talk: Talk, turns: Any, list_name: str, role_name: str, text_name: str, of: str = "") -> None:
    """Append a list of messages, or a JSON list; `of` names the list in errors if the row has several."""
    if holds_json_list(turns):
        turns = parse_json(turns, f"`{list_name}`")
    if not isinstance(turns, list):
        raise RowError(f"wrong type: `{list_name}` is {kind_of(turns)}, not a list")
    messages = talk.messages
    for number, turn in enumerate(turns, start=1):
        if type(turn) is dict and len(turn) == 2:  # fast path: most are this plain, and there are millions
            role, text = turn.get(role_name), turn.get(text_name)
            if type(text) is str and type(role) is str and role in ROLES:
                if not is_clean(text):
                    check_text(text, f"message {number}{of}: `{text_name}`")
                messages.append({"role": ROLES[role], "content": text})
                continue
        _add_turn(talk, turn, role_name, text_name, f"message {number}{of}")


def _add_turn(talk: Talk, turn: Any, role_name: str, text_name: str, where: str) -> None:
    if not isinstance(turn, dict):
        raise RowError(f"wrong type: {where} is {kind_of(turn)}, not an object")
    said = text_of(turn, _name_in(turn, role_name, _ROLE_NAMES), f"{where}: ")
    word = said.strip().lower()
    if word not in ROLES and word not in _CALL_ROLES:
        known = ", ".join((*ROLES, *_CALL_ROLES))
        raise RowError(f"unknown role: {where} is by {said[:40]!r}; known roles: {known}")
    role = ROLES.get(word, "assistant")
    message: Message = {"role": role, "content": ""}
    text_key = _name_in(turn, text_name, _TEXT_NAMES)
    _add_further(talk, message, turn, where)
    if word not in _CALL_ROLES:
        _add_content(message, turn, text_key, where)
    elif "tool_calls" in message:
        raise RowError(f"two lists of calls: {where} is a call and has another list")
    else:
        message["tool_calls"] = read_calls(field_of(turn, text_key, f"{where}: "), where, talk.is_columnar)
    if MARKS & turn.keys() and (mark := read_mark(turn, role, where)) is not None:
        talk.marks[len(talk.messages)] = mark
    talk.messages.append(message)


def _name_in(turn: Row, name: str, others: tuple[str, ...]) -> str:
    """The key that the message has, preferring the given name, and keys with a value to keys without."""
    names = (name, *others)
    return next((key for key in names if turn.get(key) is not None), next((key for key in names if key in turn), name))


def _add_content(message: Message, turn: Row, name: str, where: str) -> None:
    content = turn.get(name)
    if isinstance(content, list):
        _add_parts(message, content, where)
    elif content is not None or not ("tool_calls" in message or "reasoning_content" in message):
        message["content"] = text_of(turn, name, f"{where}: ")


def _add_parts(message: Message, parts: list[Any], where: str) -> None:
    texts: dict[str, list[str]] = {"content": [], "reasoning_content": []}
    for number, part in enumerate(parts, start=1):
        place = f"part {number} of {where}"
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if not isinstance(part, dict):
            raise RowError(f"wrong type: {place} is {kind_of(part)}, not an object")
        kind = part.get("type") or ("text" if "text" in part else None)
        if kind in _TEXT_PARTS:
            texts["content"].append(text_of(part, "text", f"{place}: "))
        elif kind in _THOUGHT_PARTS and message["role"] == "assistant":
            texts["reasoning_content"].append(text_of(part, _name_in(part, str(kind), ("text",)), f"{place}: "))
        else:
            what = _PART_KINDS.get(kind) if isinstance(kind, str) else None
            raise RowError(f"not text: {place} is {what or f'of type {str(kind)[:40]!r}'}; raymix trains on text")
    message["content"] = "".join(texts["content"])
    if (thoughts := "".join(texts["reasoning_content"])).strip():
        _set_thoughts(message, thoughts, where)


def _add_further(talk: Talk, message: Message, turn: Row, where: str) -> None:
    """What a message may have in addition to its text."""
    for name in REASONING:
        if not is_blank(turn.get(name)):
            _refuse_unless_answer(message, name, where)
            _set_thoughts(message, text_of(turn, name, f"{where}: "), where)
    for name in ("tool_calls", "function_call"):
        if not is_blank(turn.get(name)):
            _refuse_unless_answer(message, name, where)
            if "tool_calls" in message:
                raise RowError(f"two lists of calls: {where} has `tool_calls` and `function_call`")
            message["tool_calls"] = read_calls(turn[name], where, talk.is_columnar)
    for name in ("tools", "functions"):
        if not is_blank(turn.get(name)):
            if message["role"] not in ("system", "developer"):
                raise RowError(f"tools out of place: {where} is by the {message['role']} and has `{name}`")
            talk.offer(turn[name], f"`{name}` of {where}")
    for name in ("tool_call_id", "name"):
        if not is_blank(turn.get(name)):
            message[name] = text_of(turn, name, f"{where}: ")
    if found := [name for name in MEDIA if not is_blank(turn.get(name))]:
        raise RowError(f"not text: {where} has `{found[0]}`; raymix trains on text")


def _refuse_unless_answer(message: Message, name: str, where: str) -> None:
    if message["role"] != "assistant":
        raise RowError(f"`{name}` out of place: {where} is by the {message['role']}; only the assistant may have it")


def _set_thoughts(message: Message, thoughts: str, where: str) -> None:
    if message.setdefault("reasoning_content", thoughts) != thoughts:
        raise RowError(f"two different thoughts: {where} has more than one of {', '.join(REASONING)}")
