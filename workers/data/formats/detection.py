"""Detects the layout of rows and their field names."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from workers.data.formats.layouts import FORMATS, Format
from workers.data.formats.values import holds_json_list, is_blank

_CHATS = ("conversation", "dialogue", "dialog", "chat")
_PAIRS = (
    ("question", "answer"),
    ("query", "response"),
    ("problem", "solution"),
    ("input", "output"),
    ("question", "response"),
    ("query", "answer"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("prompt", "output"),
    ("user", "assistant"),
)
_ALIASES: dict[str, tuple[dict[str, str], ...]] = {
    "messages": tuple({"messages": name} for name in _CHATS),
    "alpaca": tuple(
        {"output": output, **further}
        for output in ("response", "completion", "answer")
        for further in ({}, {"input": "context"})
    ),
    "prompt_completion": tuple({"prompt": prompt, "completion": completion} for prompt, completion in _PAIRS),
}
"""Layouts under other names: field names of the format -> field names of the file."""


class Layout(NamedTuple):
    """A format, and the file's field names if they differ."""

    format: str
    fields: dict[str, str]

    def name(self, field: str) -> str:
        return self.fields.get(field, field)

    @property
    def columns(self) -> list[str]:
        """The file's names of the format's required fields."""
        return [self.name(field) for field in FORMATS[self.format].required]

    def settings(self) -> str:
        fields = ", ".join(f"{key}: {name}" for key, name in self.fields.items() if key != name)
        return f"format: {self.format}" + (f", fields: {{{fields}}}" if fields else "")


def check_fields(format_name: str, fields: Mapping[str, str]) -> None:
    """Refuse field names that the format (for `auto`, any format) does not have."""
    layouts = FORMATS if format_name == "auto" else {format_name: FORMATS[format_name]}
    if not any(_knows(layout, fields) for layout in layouts.values()):
        known = "; ".join(f"{name}: {', '.join(layout.required + layout.optional)}" for name, layout in layouts.items())
        raise ValueError(f"`fields` has the names {sorted(fields)}, but the fields are {known}")


def detect_layout(rows: Sequence[Any], fields: Mapping[str, str]) -> Layout | None:
    """The layout of most of these rows, with `fields` completed; None if no row has the fields of any format."""
    return next(iter(find_layouts(rows, fields)), None)


def find_layouts(rows: Sequence[Any], fields: Mapping[str, str]) -> list[Layout]:
    """The layout of most of these rows, then all others that some of the same rows also have.

    A conversation takes precedence over a document, and a format's standard names over others.
    """
    tiers = _tiers(fields)
    fitting = [found for row in rows if isinstance(row, dict) and (found := _fitting(row, tiers))]
    if not fitting:
        return []
    votes = Counter(found[0] for found in fitting)
    best = max(votes, key=votes.__getitem__)
    places = dict.fromkeys(chain([best], *(found for found in fitting if found[0] == best)))
    every = list(chain(*tiers))
    return [every[place] for place in places]


def _fitting(row: dict[str, Any], tiers: list[list[Layout]]) -> list[int]:
    """Indices of the matching layouts in the first tier that has any; a document next to guessed names counts too."""
    first = 0
    found: list[int] = []
    for number, tier in enumerate(tiers):
        if not found or (number == 2 and found[0] >= len(tiers[0])):
            found += [first + place for place, layout in enumerate(tier) if _fits(row, layout)]
        first += len(tier)
    return found


def _fits(row: dict[str, Any], layout: Layout) -> bool:
    if layout.format == "alpaca" and "output" in layout.fields and "instruction" not in layout.fields:
        # These guesses come in pairs that differ only by the context.
        has_context = "context" in row and is_blank(row.get("input"))
        if has_context is not (layout.fields.get("input") == "context"):
            return False
    if layout.fields.get("messages") in _CHATS and not _holds_turns(row.get(layout.name("messages"))):
        return False
    return all(row.get(column) is not None for column in layout.columns)


def _holds_turns(value: Any) -> bool:
    return holds_json_list(value) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _tiers(fields: Mapping[str, str]) -> list[list[Layout]]:
    known = [name for name, layout in FORMATS.items() if _knows(layout, fields)]
    own = [Layout(name, dict(fields)) for name in known if name != "text"]
    guessed = [
        Layout(name, {**alias, **fields})
        for name in known
        for alias in _ALIASES.get(name, ())
        if not alias.keys() & fields.keys()
    ]
    return [own, guessed, [Layout(name, dict(fields)) for name in known if name == "text"]]


def _knows(layout: Format, fields: Mapping[str, str]) -> bool:
    return set(fields) <= {*layout.required, *layout.optional}
