"""Rows that a domain leaves out by a pattern."""

import json
import re
from collections.abc import Sequence
from typing import Any

from workers.config.data import Exclusion
from workers.data.formats.example import Example
from workers.data.formats.values import Row


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
