"""How the values that a search tries read, in a table or beside a run's name."""

from collections.abc import Mapping
from typing import Any

from orchestrator.views.terminal import NOTHING


def format_value(value: Any) -> str:
    """A value of a key: numbers short, shares in per cent."""
    if value is None:
        return NOTHING
    if isinstance(value, float):
        return f"{value:.4g}"
    if is_shares(value):
        return ", ".join(f"{name} {share:.1%}" for name, share in value.items())
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {format_value(part)}" for key, part in value.items())
    return str(value)


def is_shares(value: Any) -> bool:
    """Whether a value is a mix."""
    return isinstance(value, Mapping) and all(isinstance(part, float) for part in value.values())


def short(key: str) -> str:
    """The last part of a dotted key."""
    return key.rpartition(".")[2]
