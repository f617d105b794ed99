"""The configuration's JSON Schema as a page: every key with the values it takes, its default and its meaning."""

import json
import re
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

_GROUP = "keys below"

_HEAD = """# Configuration

All keys, as printed by `raymix schema --markdown`. Keys are nested as the headings show: `training.learning_rate`. An
unknown key is an error that names the most similar known one. Any key can be overridden: `--set training.max_steps=10`.
"""


def config_page(schema: Schema) -> str:
    """Markdown: a section for the run and one for each group of keys below it, in the order of the fields."""
    definitions = schema["$defs"]
    places = [("", schema), *_walk(schema, definitions, "", set())]
    return "\n".join([_HEAD, *(_section(path, part, definitions) for path, part in places)])


def _walk(part: Schema, definitions: Schema, path: str, seen: set[str]) -> Iterator[tuple[str, Schema]]:
    """Groups of keys below a group, depth first, each with the first path to it."""
    for key, value in part.get("properties", {}).items():
        for name in _references(value):
            if name in seen:
                continue
            seen.add(name)
            group = definitions[name]
            below = f"{path}.{key}" if path else key
            if "patternProperties" in value or ("additionalProperties" in value and "properties" not in value):
                below += ".NAME"
            if kind := _kind(group):
                below += f" ({kind})"
            yield below, group
            yield from _walk(group, definitions, below, seen)


def _section(path: str, part: Schema, definitions: Schema) -> str:
    cells = {
        key: (_type(value, definitions), _default(key, value, part), _cell(value.get("description", "")))
        for key, value in part["properties"].items()
    }
    rows = [f"| `{key}` | {' | '.join(of_key)} |" for key, of_key in cells.items()]
    about = " ".join(part.get("description", "").split())
    title = f"## {path or 'The run'}\n\n{about}\n"
    return "\n".join([title, "| key | takes | default | meaning |", "|---|---|---|---|", *rows, ""])


def _kind(group: Schema) -> str:
    """`type: versatune` of a group that is one of several; several names if these share their keys."""
    for key in ("type", "plan"):
        tag = group.get("properties", {}).get(key, {})
        is_one_of_several = key in group.get("required", []) and "enum" in tag
        if kinds := [tag["const"]] if "const" in tag else tag["enum"] if is_one_of_several else []:
            return f"{key}: {', '.join(kinds)}"
    return ""


def _references(value: Any) -> list[str]:
    """Names of the groups that a key can have as its value."""
    if isinstance(value, dict):
        own = [value["$ref"].rsplit("/", 1)[1]] if "$ref" in value else []
        parts = [part for name, part in value.items() if name not in ("discriminator", "default")]
        return own + [name for part in parts for name in _references(part)]
    if isinstance(value, list):
        return [name for part in value for name in _references(part)]
    return []


def _type(value: Schema, definitions: Schema) -> str:
    if "$ref" in value:
        kind = _kind(definitions[value["$ref"].rsplit("/", 1)[1]])
        return f"{_GROUP} ({kind})" if kind else _GROUP
    for choice in ("anyOf", "oneOf"):
        if choice in value:
            kinds = list(dict.fromkeys(_type(part, definitions) for part in value[choice]))
            groups = [kind for kind in kinds if kind.startswith(_GROUP)]
            single = [kind for kind in kinds if kind not in groups and kind != "nothing"]
            constants = [found[1] for kind in groups if (found := re.search(r": ([\w, ]+)\)$", kind))]
            if constants:
                groups = [f"{groups[0].partition(':')[0]}: {', '.join(constants)})"]
            return " or ".join([*single, *groups])
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{entry}`" for entry in value["enum"])
    match value.get("type"):
        case "array":
            if "prefixItems" in value:
                return "list of " + ", ".join(_type(part, definitions) for part in value["prefixItems"])
            return f"list of {_type(value.get('items', {}), definitions)}"
        case "object":
            inner = next(iter(value.get("patternProperties", {}).values()), value.get("additionalProperties"))
            return f"by name: {_type(inner, definitions)}" if isinstance(inner, dict) and inner else "keys and values"
        case "null":
            return "nothing"
        case "string":
            return "path" if value.get("format") == "path" else "text"
        case "boolean":
            return "true, false"
        case "integer" | "number" as kind:
            return " ".join(["whole number" if kind == "integer" else "number", *_bounds(value)])
        case _:
            return "anything"


def _bounds(value: Schema) -> Iterator[str]:
    for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")):
        if key in value:
            yield f"{sign} {'2^64' if value[key] == 2**64 else format(value[key], 'g')}"


def _default(key: str, value: Schema, part: Schema) -> str:
    if key in part.get("required", []):
        return "required"
    default = value.get("default")
    if default is None or isinstance(default, dict | list):
        return ""
    return f"`{json.dumps(default) if not isinstance(default, str) else default}`"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")
