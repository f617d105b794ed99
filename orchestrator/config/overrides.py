"""`--set key.path=value`: one value of a configuration changed on the command line, before validation.

A part of the path is a key, the name of a domain (which may itself contain dots), or an index into a list: `train[0]`,
`stages.1`. Missing groups are created, but not domains, since a misspelt name would silently add one.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from orchestrator.config.errors import ConfigError, KeyPath, format_path
from workers.nearest import suggest

Origins = dict[KeyPath, int | str]
"""Where a key comes from: its line in the file, or the text of the `--set` that gave it."""

_PART = re.compile(r"([^.\[\]]+)((?:\[\d+\])*)")
_NAMED_GROUPS: tuple[KeyPath, ...] = (("domains",),)


def apply_overrides(
    overrides: Sequence[str], data: dict[str, Any], origins: Origins, read: Callable[[str], Any]
) -> None:
    """Apply every `a.b=value` to the data, in order; `data` and `origins`, those of its keys, are changed in place.

    `read` parses a value, and raises yaml.YAMLError or ValueError. ConfigError if an override does not have that form,
    or if its path does not exist.
    """
    set_before: dict[KeyPath, str] = {}
    for override in overrides:
        name, value = _parse(override, read)
        key = _set(data, name, value, override)
        for earlier, text in set_before.items():
            if earlier[: len(key)] == key:
                raise _fault(override, f"{format_path(earlier)} is already set by --set {text}; keep one of them")
        set_before[key] = override
        for below in [known for known in origins if known[: len(key)] == key]:
            del origins[below]
        for end in range(1, len(key)):
            origins.setdefault(key[:end], override)
        origins[key] = override


def _parse(override: str, read: Callable[[str], Any]) -> tuple[list[str | int], Any]:
    """The parts of the path, and the value."""
    path, equals, text = override.partition("=")
    parts: list[str | int] = []
    for part in path.strip().split("."):
        match = _PART.fullmatch(part)
        if match is None or not equals:
            raise _fault(override, "write it as key.path=value, e.g. training.max_steps=100")
        parts.append(match[1])
        parts += [int(place) for place in re.findall(r"\d+", match[2])]
    if not text.strip():
        raise _fault(override, "has no value after `=`; give one (null to unset, '\"\"' for an empty text)")
    try:
        return parts, read(text)
    except (yaml.YAMLError, ValueError):
        raise _fault(override, f"{text!r} is not a YAML value; put it in quotes") from None


def _set(data: dict[str, Any], parts: list[str | int], value: Any, override: str) -> KeyPath:
    """Set the value in the data and return its key."""
    key: KeyPath = ()
    inner: Any = data
    left = parts
    while True:
        part, num_taken = _next(inner, left, key, override)
        left = left[num_taken:]
        key = (*key, part)
        if not left:
            inner[part] = value
            return key
        if isinstance(inner, dict):
            if inner.get(part) is None:
                inner[part] = {}
            inner = inner[part]
        else:
            inner = inner[int(part)]


def _next(inner: Any, left: list[str | int], key: KeyPath, override: str) -> tuple[str | int, int]:
    """The next key of the path below `inner`, and how many parts it consists of."""
    part = left[0]
    if isinstance(inner, list):
        if not str(part).isdecimal():
            places = f"{format_path((*key, 0))} to {format_path((*key, len(inner) - 1))}" if inner else "it is empty"
            raise _fault(override, f"{format_path(key)} is a list; give an index: {places}")
        if int(part) >= len(inner):
            what = f"{format_path(key)} has {len(inner)} entries, counted from 0; to add more, set the whole list"
            raise _fault(override, what)
        return int(part), 1
    if not isinstance(inner, dict):
        kind = "list" if _is_place(part) else "group of keys"
        raise _fault(override, f"{format_path(key)!r} is {inner!r}, not a {kind}")
    if _is_place(part):
        if not inner:
            raise _fault(override, f"{format_path(key)} is not in the file, so it has no entry {part}; set all of it")
        raise _fault(override, f"{format_path(key)} is a group of keys, not a list; name one of them")
    for end in range(len(left), 0, -1):  # names that contain dots
        if all(isinstance(each, str) for each in left[:end]) and (name := ".".join(map(str, left[:end]))) in inner:
            return name, end
    if key in _NAMED_GROUPS and inner:
        raise _fault(
            override,
            f"there is no domain {part!r}{suggest(str(part), inner, 'its domains are')} (add new domains in the file)",
        )
    return part, 1


def _is_place(part: str | int) -> bool:
    return isinstance(part, int)


def _fault(override: str, what: str) -> ConfigError:
    return ConfigError([f"--set {override}: {what}"])
