"""YAML -> SweepConfig; every fault is reported with file:line and key path before anything starts.

Safe YAML only: no tags, no duplicate keys, and limits on bytes, depth and number of values, aliases expanded.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from orchestrator.config.errors import ConfigError, Fault, KeyPath, describe, format_path, unknown_changes
from orchestrator.config.machine import missing_files, missing_gpus, unwritable_output
from orchestrator.config.sweep import SweepConfig
from workers.nearest import find_nearest, suggest
from workers.plugins import plugin_faults
from workers.signals import build_signal

_MAX_BYTES = 2**18
_MAX_VALUES = 10_000
_MAX_DEPTH = 30
_MERGE_TAG = "tag:yaml.org,2002:merge"
_PART = re.compile(r"([^.\[\]]+)((?:\[\d+\])*)")
_NAMED_GROUPS: tuple[KeyPath, ...] = (("domains",),)

Origins = dict[KeyPath, int | str]
"""Where a key comes from: its line in the file, or the text of the `--set` that gave it."""


class _BoundedLoader(yaml.SafeLoader):
    """Rejects tags, and stops at a file that is too deep or too long to be a configuration."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._num_values = 0
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        self._num_values += 1
        self._depth += 1
        if getattr(event, "tag", None) is not None:
            problem = f"tag {event.tag!r} is not allowed; remove it"
        elif self._depth > _MAX_DEPTH:
            problem = f"nested more than {_MAX_DEPTH} levels deep"
        elif self._num_values > _MAX_VALUES:
            problem = f"more than {_MAX_VALUES:,} values"
        else:
            node = super().compose_node(parent, index)
            self._depth -= 1
            return node
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def load_config(path: Path, overrides: Sequence[str] = (), check_files: bool = True) -> SweepConfig:
    """Read, override and validate a configuration; ConfigError with one line for each fault.

    Relative paths in it are relative to the current folder. `overrides` are `a.b=value` pairs, whose values are YAML;
    `check_files` also checks the files that it names, and the GPUs that a local run needs.
    """
    if lines := plugin_faults():
        raise ConfigError(lines)
    data, origins = _parse(path)
    _apply_overrides(overrides, data, origins)
    try:
        config = SweepConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError([_line(path, origins, *fault) for fault in describe(error, data)]) from None
    faults = [*unknown_changes(config), *_unknown_signals(config)]
    if check_files and not faults:
        faults = [*missing_files(config), *unwritable_output(config), *missing_gpus(config)]
    if faults:
        raise ConfigError([_line(path, origins, *fault) for fault in faults])
    return config


def _unknown_signals(config: SweepConfig) -> Iterator[Fault]:
    for name in config.mixing.required_signals:
        try:
            build_signal(name, config.trained_domains)
        except ValueError as error:
            yield ("mixing", "type"), f"{config.mixing.type}: {error}"


def _line(path: Path, origins: Origins, key: KeyPath, what: str) -> str:
    """A fault with the location of its key, or of the innermost enclosing key that was given."""
    given = key
    while given and given not in origins:
        given = given[:-1]
    origin, name = origins.get(given), format_path(key)
    if isinstance(origin, str):
        return f"--set {origin}: {what}" if origin.partition("=")[0] == name else f"--set {origin}: {name}: {what}"
    return f"{path}:{origin}: {name}: {what}" if origin else f"{path}: {name}: {what}"


def _parse(path: Path) -> tuple[dict[str, Any], Origins]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(
                [f"{path}: {path.stat().st_size:,} bytes; a configuration may have {_MAX_BYTES:,} at most"]
            )
        text = path.read_text(encoding="utf-8")
        loader = _BoundedLoader(text)
        root = loader.get_single_node()
        lines: Origins = {}
        data = _Builder(path, loader, lines).build(root, ()) if root is not None else None
    except OSError as error:
        raise ConfigError([_unreadable(path, error)]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 at byte {error.start}"]) from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError([f"{path}{line}: not valid YAML: {error.problem}"]) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: not valid YAML: {' '.join(str(error).split())}"]) from None
    if data is None:
        raise ConfigError([f"{path}: is empty; `raymix schema` shows what a configuration contains"])
    if not isinstance(data, dict):
        raise ConfigError([f"{path}: a configuration must be a mapping of keys, e.g. `name: my-run`"])
    return data, lines


def _unreadable(path: Path, error: OSError) -> str:
    """Why no configuration can be read from a path, with a suggestion."""
    if path.is_dir():
        here = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
        return f"{path}: is a folder; give the path of a YAML file{f', such as {here[0]}' if here else ''}"
    beside = {str(file) for pattern in ("*.yaml", "*.yml") for file in path.parent.glob(pattern)}
    near = find_nearest(str(path), beside)
    return f"{path}: {error.strerror}; {f'did you mean {near!r}?' if near else 'give the path of a YAML file'}"


class _Builder:
    """Builds plain data from YAML nodes, recording the line of every key and rejecting duplicates."""

    def __init__(self, path: Path, loader: yaml.SafeLoader, lines: Origins) -> None:
        self._path, self._loader, self._lines = path, loader, lines
        self._num_values = 0

    def build(self, node: yaml.Node, key: KeyPath) -> Any:
        self._num_values += 1
        if self._num_values > _MAX_VALUES or len(key) > _MAX_DEPTH:
            limit = f"{_MAX_VALUES:,} values, or {_MAX_DEPTH} levels, once aliases are expanded"
            raise ConfigError([f"{self._path}:{node.start_mark.line + 1}: more than {limit}"])
        self._lines.setdefault(key, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*key, i)) for i, item in enumerate(node.value)]
        try:
            return self._loader.construct_object(node)
        except ValueError as error:  # looks like a number or a date but is not valid
            place = f"{self._path}:{node.start_mark.line + 1}: {format_path(key)}"
            raise ConfigError([f"{place}: {node.value[:40]!r} cannot be read ({error}); put it in quotes"]) from None

    def _mapping(self, node: yaml.MappingNode, key: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        inherited: dict[str, Any] = {}
        for name_node, value_node in node.value:
            if name_node.tag == _MERGE_TAG:
                merged = self.build(value_node, (*key, "<<"))
                for group in merged if isinstance(merged, list) else [merged]:
                    inherited = (group if isinstance(group, dict) else {"<<": group}) | inherited
                continue
            name = self._loader.construct_object(name_node)
            line = name_node.start_mark.line + 1
            place = f"{self._path}:{line}: {format_path((*key, str(name)))}"
            if not isinstance(name, str):
                raise ConfigError([f"{place}: YAML reads this key as {name!r}; put it in quotes"])
            if name in mapping:
                first = self._lines[(*key, name)]
                raise ConfigError([f"{place}: duplicate key (first defined on line {first}); remove one"])
            self._lines[(*key, name)] = line
            mapping[name] = self.build(value_node, (*key, name))
        return inherited | mapping


def _apply_overrides(overrides: Sequence[str], data: dict[str, Any], origins: Origins) -> None:
    """Apply every `a.b=value` to the data, in order; `data` and `origins`, those of its keys, are changed in place.

    A part of the path is a key, the name of a domain (which may itself contain dots), or an index into a list:
    `train[0]`, `stages.1`. Missing groups are created, but not domains, since a misspelt name would silently add one.
    ConfigError if an override does not have that form, or if its path does not exist.
    """
    set_before: dict[KeyPath, str] = {}
    for override in overrides:
        name, value = _parse_override(override)
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


def _parse_override(override: str) -> tuple[list[str | int], Any]:
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
        return parts, yaml.load(text, _BoundedLoader)
    except (yaml.YAMLError, ValueError):
        raise _fault(override, f"{text!r} is not a YAML value; put it in quotes") from None


def _set(data: dict[str, Any], parts: list[str | int], value: Any, override: str) -> KeyPath:
    """Set the value in the data and return its key."""
    key: KeyPath = ()
    inner: Any = data
    while True:
        part, num_taken = _next(inner, parts, key, override)
        key, parts = (*key, part), parts[num_taken:]
        if not parts:
            inner[part] = value
            return key
        if isinstance(inner, dict) and inner.get(part) is None:
            inner[part] = {}
        inner = inner[part]


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
        kind = "list" if isinstance(part, int) else "group of keys"
        raise _fault(override, f"{format_path(key)!r} is {inner!r}, not a {kind}")
    if isinstance(part, int):
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


def _fault(override: str, what: str) -> ConfigError:
    return ConfigError([f"--set {override}: {what}"])
