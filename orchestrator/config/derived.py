"""Configurations derived from others: changes applied to the given keys, then validated like a file."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from orchestrator.config.errors import ConfigError, describe, format_path
from orchestrator.config.run import RunConfig

_TAGS = ("type", "plan")  # the keys that tell which kind of section a mapping is
Config = TypeVar("Config", bound=RunConfig)


def derive(kind: type[Config], config: RunConfig, changes: Mapping[str, Any], place: str) -> Config:
    """The configuration with changes, as another kind of configuration that shares its token stores.

    ConfigError, each line beginning with `place`, if the result is not valid.
    """
    given = config.model_dump(mode="json", exclude_unset=True, include=set(kind.model_fields))
    data = merge(merge(given, {"data": {"cache_dir": str(config.cache_dir)}}), changes)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        lines = [f"{place}: {format_path(key)}: {what}" for key, what in describe(error, data)]
        raise ConfigError(lines) from None


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The base with the changes merged in, recursively.

    A mapping of another kind (`type`, `plan`) replaces the base's, since none of the old keys apply to it.
    """
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if old is not None and _are_one_kind(old, value) else value
    return merged


def nested(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys expanded: {"a.b": 1} becomes {"a": {"b": 1}}. Only the outermost keys may be dotted."""
    result: dict[str, Any] = {}
    for dotted, value in changes.items():
        for name in reversed(dotted.split(".")):
            value = {name: value}
        result = merge(result, value)
    return result


def _are_one_kind(old: Any, new: Any) -> bool:
    are_mappings = isinstance(old, Mapping) and isinstance(new, Mapping)
    return are_mappings and all(new.get(tag, old.get(tag)) == old.get(tag) for tag in _TAGS)
