"""Faults of a configuration in a person's words: key path, what was found, what to change."""

import difflib
import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.config import RunConfig

KeyPath = tuple[str | int, ...]
Fault = tuple[KeyPath, str]


class ConfigError(ValueError):
    """The configuration is wrong; `lines` has one sentence for each fault."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def format_path(key: KeyPath) -> str:
    """`domains.math.train[0]`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".") or "the configuration"


def describe(error: ValidationError, data: dict[str, Any]) -> list[Fault]:
    """One fault for each key that pydantic complained about.

    A union reports every branch that failed; they are joined into one sentence, or the branch that has the value's
    own shape is taken.
    """
    faults: dict[KeyPath, list[str]] = {}
    for detail in error.errors():
        key = _key_path(detail, data)
        if detail["type"] in ("literal_error", "path_type") and isinstance(detail["input"], dict):
            continue  # the branch for a word or a file; the one for a mapping says what is wrong
        what = _what(detail, key, data)
        if not key and detail["type"] == "value_error":  # RunConfig's own checks put the key in front
            name, _, what = what.partition(": ")
            key = tuple(int(part) if part.isdecimal() else part for part in re.findall(r"[^.[\]]+", name))
        known = faults.setdefault(key, [])
        if what not in known:
            known.append(what)
    deepest = [key for key in faults if not any(other[: len(key)] == key and other != key for other in faults)]
    return [(key, " or ".join(faults[key])) for key in deepest]


def _key_path(detail: ErrorDetails, data: Any) -> KeyPath:
    """The location without the names of union branches, which are pydantic's own."""
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
            return "is missing; give it a value"
        case "value_error":
            return str(context["error"])
        case "finite_number":
            return f"is {found}; give a finite number"
        case "union_tag_not_found":
            return "has no `type`; say which one it is"
        case "union_tag_invalid":
            return f"type {context['tag']!r} is not known{_nearest(str(context['tag']), _tags(context))}"
        case "literal_error":
            return f"is {found!r}; it must be {context['expected']}"
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
    model = _model_at(RunConfig, key[:-1], data)
    siblings = list(model.model_fields) if model else []
    homes = [format_path((*path, name)) for path, fields in _groups(RunConfig, ()) if name in fields]
    if homes:
        return f"unknown key here; it belongs at {' or '.join(homes)}"
    if difflib.get_close_matches(name, siblings, 1):
        return f"unknown key{_nearest(name, siblings)}"
    return f"unknown key; known here: {', '.join(siblings)}"


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes that a field may hold; of a mapping, those of its values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, types.UnionType, dict, list):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []


def _model_at(model: type[BaseModel] | None, path: KeyPath, data: Any) -> type[BaseModel] | None:
    """The settings class whose keys stand at a path of the data."""
    choices = [model] if model else []
    for part in path:
        data = data[part] if _has(data, part) else None
        if model is not None and part in model.model_fields:
            choices = _models(model.model_fields[str(part)].annotation)
        # Else a place in a list, or the name of a domain: the classes stay those of the entries.
        tagged = [choice for choice in choices if isinstance(data, dict) and _has_tag(choice, data)]
        model = next(iter(tagged or choices), None)
    return model


def _has_tag(model: type[BaseModel], data: dict[str, Any]) -> bool:
    """Whether the data says that it is of this class: by `type`, or of a plan of stages by `plan`."""
    tags = [key for key in ("type", "plan") if key in model.model_fields]
    return any(model.model_fields[key].default == data.get(key) for key in tags)


def _groups(model: type[BaseModel], path: KeyPath) -> Iterator[tuple[KeyPath, set[str]]]:
    """Every group of keys in the configuration, but for those under a name of the user's choosing."""
    yield path, set(model.model_fields)
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if get_origin(annotation) is not dict:
            for inner in _models(annotation):
                yield from _groups(inner, (*path, name))
