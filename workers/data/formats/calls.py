"""Tools and calls in common layouts -> the form that chat templates take."""

from typing import Any

from workers.data.formats.example import Tool
from workers.data.formats.values import Row, RowError, check_nested, is_blank, kind_of, parse_json, without_nulls

Call = dict[str, Any]

_ARGUMENTS = ("arguments", "parameters", "args")


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
