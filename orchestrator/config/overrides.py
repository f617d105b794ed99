"""`--set key.path=value`: one value of a configuration changed on the command line, before anything is checked.

A part of the path is a key, the name of a domain (which may have dots of its own), or a place in a list: `train[0]`,
`stages.1`. Only what a configuration may hold is made anew; a domain is not, as a wrong name would add one.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from orchestrator.config.errors import ConfigError, KeyPath, format_path
from workers.nearest import suggest

Origins = dict[KeyPath, int | str]
"""Where a key comes from: its line in the file, or the `--set` that gave it, as it was typed."""

_PART = re.compile(r"([^.\[\]]+)((?:\[\d+\])*)")
_NAMED_GROUPS: tuple[KeyPath, ...] = (("domains",),)


def apply_overrides(
    overrides: Sequence[str], data: dict[str, Any], origins: Origins, read: Callable[[str], Any]
) -> None:
    """Set every `a.b=value` in the data, in order.

    Args:
        overrides: as they were typed.
        data: of the file; changed.
        origins: of its keys; changed.
        read: reads a value; it raises yaml.YAMLError or ValueError.

    Raises:
        ConfigError: one is not of that form, or names what is not there.
    """
    set_before: dict[KeyPath, str] = {}
    for override in overrides:
        name, value = _parse(override, read)
        key = _set(data, name, value, override)
        for earlier, text in set_before.items():
            if earlier[: len(key)] == key:
                raise _fault(override, f"{format_path(earlier)} is set before, by --set {text}; keep one of them")
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
        raise _fault(override, "has no value after `=`; give one (null for none, '\"\"' for an empty text)")
    try:
        return parts, read(text)
    except (yaml.YAMLError, ValueError):
        raise _fault(override, f"{text!r} is not a YAML value; put it in quotes") from None


def _set(data: dict[str, Any], parts: list[str | int], value: Any, override: str) -> KeyPath:
    """Set the value in the data; where that is."""
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
    """The next key of the path below `inner`, and how many parts make it."""
    part = left[0]
    if isinstance(inner, list):
        if not str(part).isdecimal():
            places = f"{format_path((*key, 0))} to {format_path((*key, len(inner) - 1))}" if inner else "it is empty"
            raise _fault(override, f"{format_path(key)} is a list; name a place in it: {places}")
        if int(part) >= len(inner):
            raise _fault(
                override, f"{format_path(key)} has {len(inner)} entries, counted from 0; set all of it to have more"
            )
        return int(part), 1
    if not isinstance(inner, dict):
        kind = "list" if _is_place(part) else "group of keys"
        raise _fault(override, f"{format_path(key)!r} is {inner!r}, not a {kind}")
    if _is_place(part):
        if not inner:
            raise _fault(override, f"{format_path(key)} is not in the file, so it has no place {part}; set all of it")
        raise _fault(override, f"{format_path(key)} is a group of keys, not a list; name one of them")
    for end in range(len(left), 0, -1):  # names with dots of their own
        if all(isinstance(each, str) for each in left[:end]) and (name := ".".join(map(str, left[:end]))) in inner:
            return name, end
    if key in _NAMED_GROUPS and inner:
        raise _fault(
            override,
            f"there is no domain {part!r}{suggest(str(part), inner, 'its domains are')} "
            "(a new domain is written into the file)",
        )
    return part, 1


def _is_place(part: str | int) -> bool:
    return isinstance(part, int)


def _fault(override: str, what: str) -> ConfigError:
    return ConfigError([f"--set {override}: {what}"])
