"""Validation errors as sentences for the user: key path, what was found, what to change."""

import re
import types
import unicodedata
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.config.sweep import SweepConfig
from workers.nearest import find_nearest, suggest

KeyPath = tuple[str | int, ...]
Fault = tuple[KeyPath, str]

_MISSING = "is missing; give it a value"
_TAGS = ("type", "plan")
"""Keys whose value decides which others a group has."""
_NAME_START = "^[A-Za-z0-9][A-Za-z0-9._-]{0,"  # how the pattern of every kind of name begins


class ConfigError(ValueError):
    """The configuration is not valid; `lines` has one sentence for each fault."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def format_path(key: KeyPath) -> str:
    """`domains.math.train[0]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".") or "the configuration"


def describe(error: ValidationError, data: dict[str, Any]) -> list[Fault]:
    """One fault for each key that pydantic rejected.

    A union reports every branch that failed. The branch that matches the value's shape is used if there is one; else
    all are joined into one sentence.
    """
    faults: dict[KeyPath, list[str]] = {}
    lists: dict[KeyPath, str] = {}
    for detail in error.errors():
        key = _key_path(detail, data)
        if detail["type"] in ("literal_error", "path_type") and isinstance(detail["input"], dict):
            continue  # the branch for a word or a file; the one for a mapping names the fault
        what = _what(detail, key, data)
        if detail["type"] == "union_tag_invalid":
            key = (*key, detail["ctx"]["discriminator"].strip("'"))
        if not key and detail["type"] == "value_error":  # checks of the whole configuration begin with the key
            name, _, what = what.partition(": ")
            key = tuple(int(part) if part.isdecimal() else part for part in re.findall(r"[^.[\]]+", name))
        known = faults.setdefault(key, [])
        if detail["type"] == "list_type" and isinstance(detail["input"], dict):
            lists[key] = what  # not needed if the branch for a mapping names the fault
        elif what not in known:
            known.append(what)
    faults |= {key: [what] for key, what in lists.items() if not faults[key]}
    misspelt = {(*key[:-1], near) for key, near in _misspelt(error, data)}
    deepest = [key for key in faults if not any(other[: len(key)] == key and other != key for other in faults)]
    return [(key, _joined(faults[key])) for key in deepest if not (key in misspelt and faults[key] == [_MISSING])]


def _joined(faults: list[str]) -> str:
    """The branches of a union in one sentence that shows the value once."""
    shown = re.match("is .*; (?=it must |input should )", faults[0])
    start = shown.group() if shown else ""
    return ", or ".join([faults[0], *(fault.removeprefix(start) for fault in faults[1:])])


def _misspelt(error: ValidationError, data: dict[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Unknown keys, each with the most similar known key of its group."""
    for detail in error.errors():
        if detail["type"] == "extra_forbidden":
            key = _key_path(detail, data)
            model = _model_at(SweepConfig, key[:-1], data)
            if model and (near := find_nearest(str(key[-1]), model.model_fields)):
                yield key, near


def _key_path(detail: ErrorDetails, data: Any) -> KeyPath:
    """The location without the names of union branches, which pydantic adds."""
    key: list[str | int] = []
    last = len(detail["loc"]) - 1
    for i, part in enumerate(detail["loc"]):
        is_own_key = i == last and detail["type"] == "missing"
        if _has(data, part):
            data = data[part]
        elif not is_own_key:
            continue
        key.append(part)
    return tuple(key)


def _has(data: Any, part: str | int) -> bool:
    return part in data if isinstance(data, dict) else isinstance(data, list) and part in range(len(data))


def _what(detail: ErrorDetails, key: KeyPath, data: dict[str, Any]) -> str:
    found, context = detail["input"], detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            return _unknown_key(key, data)
        case "missing":
            return _MISSING
        case "value_error":
            return str(context["error"])
        case "finite_number":
            return f"is {found}; give a finite number"
        case "union_tag_not_found":
            return "has no `type`; add one"
        case "union_tag_invalid":
            return f"{context['tag']!r} is not known{suggest(str(context['tag']), _tags(context))}"
        case "literal_error":
            return f"is {found!r}; it must be {context['expected']}"
        case "model_type" | "model_attributes_type" | "dict_type":
            model = _model_at(SweepConfig, key, data)
            known = f": {', '.join(model.model_fields)}" if model else ""
            return f"is {_shorten(found)}; give a group of keys{known}"
        case "string_type" if isinstance(found, int | float):
            kind = "yes or no" if isinstance(found, bool) else "a number"
            return f"is {_shorten(found)}, which YAML reads as {kind}; put it in quotes"
        case "string_pattern_mismatch" if context["pattern"].startswith(_NAME_START):
            return f"is {_shorten(found)}; {_name_rule(str(found))}"
        case _:
            message = detail["msg"]
            return f"is {_shorten(found)}; {message[0].lower()}{message[1:]}"


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _tags(context: dict[str, Any]) -> list[str]:
    return [tag.strip(" '") for tag in str(context["expected_tags"]).split(",")]


def _unknown_key(key: KeyPath, data: dict[str, Any]) -> str:
    name = str(key[-1])
    model = _model_at(SweepConfig, key[:-1], data)
    homes = dict.fromkeys(format_path((*path, name)) for path, fields in _groups(SweepConfig, ()) if name in fields)
    if model and format_path(key) in homes:  # a key of another kind of the same group
        kind = next(model.model_fields[tag].default for tag in _TAGS if tag in model.model_fields)
        return f"is not a key of {kind}{suggest(name, model.model_fields, 'known here')}"
    if homes:
        least = min(home.count(".") for home in homes)
        return f"unknown key here; it belongs at {' or '.join(home for home in homes if home.count('.') == least)}"
    return f"unknown key{suggest(name, model.model_fields if model else [], 'known here')}"


def unknown_changes(config: SweepConfig) -> list[Fault]:
    """One fault for every unknown key that a variant to compare, or a space to search, changes."""
    faults: list[Fault] = []
    for label, changes in config.compare.variants.items():
        for dotted in _leaves(changes):
            if what := _unknown_change(dotted):
                faults.append((("compare", "variants", label, *dotted), what))
    for dotted in getattr(config.search, "space", None) or {}:
        if what := _unknown_change(tuple(dotted.split("."))):
            faults.append((("search", "space", dotted), what))
    return faults


def _leaves(changes: Any, key: KeyPath = ()) -> Iterator[KeyPath]:
    """Every key path in the changes, whose outermost keys may be dotted."""
    if isinstance(changes, dict) and changes:
        for name, value in changes.items():
            yield from _leaves(value, (*key, *(name.split(".") if not key else [name])))
    else:
        yield key


def _unknown_change(key: KeyPath) -> str | None:
    """What is wrong with a key path; None if it is known in any kind of configuration."""
    choices: list[type[BaseModel]] = [SweepConfig]
    is_named = False  # whether the next part is a name of the user's choosing
    for part in key:
        if not choices:
            return None
        if is_named:
            is_named = False
            continue
        fields = [model.model_fields[str(part)] for model in choices if part in model.model_fields]
        if not fields:
            known = dict.fromkeys(name for model in choices for name in model.model_fields)
            return f"unknown key {part!r}{suggest(str(part), known, 'known here')}"
        is_named = any(get_origin(field.annotation) is dict for field in fields)
        choices = [model for field in fields for model in _models(field.annotation)]
    return None


def _name_rule(found: str) -> str:
    """The rule for names, with a valid name similar to the one found."""
    plain = unicodedata.normalize("NFKD", found).encode("ascii", "ignore").decode()
    near = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")[:60]
    example = f", e.g. {near!r}" if near else ""
    return f"a name has letters a to z, digits, `.`, `-` and `_` only, and begins with a letter or digit{example}"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes that a field may hold; of a mapping, those of its values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, types.UnionType, dict, list):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []


def _model_at(model: type[BaseModel] | None, path: KeyPath, data: Any) -> type[BaseModel] | None:
    """The settings class at a path of the data."""
    choices = [model] if model else []
    for part in path:
        data = data[part] if _has(data, part) else None
        if model is not None and part in model.model_fields:
            choices = _models(model.model_fields[str(part)].annotation)
        # Otherwise a list index or the name of a domain: the classes remain those of the entries.
        tagged = [choice for choice in choices if isinstance(data, dict) and _has_tag(choice, data)]
        model = next(iter(tagged or choices), None)
    return model


def _has_tag(model: type[BaseModel], data: dict[str, Any]) -> bool:
    """Whether the data's `type` (for a plan of stages, `plan`) is that of this class."""
    tags = [key for key in _TAGS if key in model.model_fields]
    return any(model.model_fields[key].default == data.get(key) for key in tags)


def _groups(model: type[BaseModel], path: KeyPath) -> Iterator[tuple[KeyPath, set[str]]]:
    """Every group of keys in the configuration; NAME is a placeholder for user-chosen names."""
    yield path, set(model.model_fields)
    for name, field in model.model_fields.items():
        inside = (*path, name, "NAME") if get_origin(field.annotation) is dict else (*path, name)
        for inner in _models(field.annotation):
            yield from _groups(inner, inside)
