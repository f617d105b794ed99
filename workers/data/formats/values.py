"""Checked values of a row's fields: text that can be encoded, JSON that can be parsed, bounded nesting."""

import json
from collections.abc import Callable, Mapping
from typing import Any

Row = Mapping[str, Any]
Names = Callable[[str], str]  # field name of the format -> field name of the file

_MAX_DEPTH = 32  # of calls and schemas; a chat template walks them by recursion


class RowError(ValueError):
    """Why a row cannot be used: "kind" or "kind: details"."""


def text_of(row: Row, name: str, where: str = "") -> str:
    """The text in a field; RowError if there is none, or it cannot be encoded."""
    text = row.get(name)
    if type(text) is str and is_clean(text):
        return text
    text = field_of(row, name, where)
    if not isinstance(text, str):
        raise RowError(f"wrong type: {where}`{name}` is {kind_of(text)}, not text")
    check_text(text, f"{where}`{name}`")
    return text


def optional_text(row: Row, name: str) -> str:
    return "" if row.get(name) is None else text_of(row, name)


def field_of(row: Row, name: str, where: str = "") -> Any:
    if name not in row:
        found = ", ".join(repr(str(key)[:40]) for key in list(row)[:6])
        raise RowError(f"missing field: {where}`{name}`; it has {found or 'no fields'}")
    return row[name]


def is_clean(text: str) -> bool:
    """Whether a tokenizer can take it: no NUL, no lone surrogate."""
    if text.isascii():
        return "\0" not in text
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def check_text(text: str, place: str) -> None:
    """Refuse what no tokenizer could take."""
    if "\0" in text:
        raise RowError(f"NUL character: {place}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"lone surrogate: {place}, character {error.start}") from None


def check_nested(value: Any, place: str) -> None:
    """Refuse a nested value with text that no tokenizer could take, with a type that JSON lacks (such as a date from a
    Parquet file), or nested deeper than a template can walk.
    """
    level = [value]
    for _ in range(_MAX_DEPTH):
        for item in level:
            if isinstance(item, str):
                check_text(item, place)
            elif item is not None and not isinstance(item, int | float | list | dict):
                raise RowError(f"wrong type: {place} has a {type(item).__name__}; JSON has none")
        level = [part for item in level for part in _parts(item)]
        if not level:
            return
    raise RowError(f"nested too deep: {place} has more than {_MAX_DEPTH} levels")


def without_nulls(value: Any) -> Any:
    """A nested value without keys whose value is null; at most as deep as `check_nested` allows."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def parse_json(text: str, place: str) -> Any:
    """The value of a JSON text; RowError with the beginning of the text if it is not JSON."""
    try:
        return json.loads(text)
    except RecursionError:
        raise RowError(f"nested too deep: {place}") from None
    except ValueError:
        raise RowError(f"not JSON: {place} is {text[:60]!r}") from None


def holds_json_list(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip()[:1] == "["


def is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {})


def kind_of(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else []
