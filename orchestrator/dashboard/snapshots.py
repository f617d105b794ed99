"""What a page shows at one moment, and what changed since the moment before: only that is sent.

    {"parts": {id: html}, "figures": [...], "values": {...}}     everything: a page begins with it
    {"parts": {id: html}, "patches": {index: patch}, "values": {...}}

A patch of a figure names the traces and keys that changed; of a list that has grown at its end only the end.
"""

from dataclasses import dataclass, field
from typing import Any

OUTLINE = "sections"  # the part with a place for every figure


@dataclass(frozen=True)
class Snapshot:
    """HTML by the id of the element that shows it, figures in the page's order, and small values for its scripts."""

    parts: dict[str, str]
    figures: list[dict[str, Any]] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def whole(self) -> dict[str, Any]:
        """The message that a page begins with."""
        return {"parts": self.parts, "figures": self.figures, "values": self.values}

    def changes(self, before: "Snapshot") -> dict[str, Any] | None:
        """The message that brings a page from `before` to this; None where they are the same."""
        if self.parts.get(OUTLINE) != before.parts.get(OUTLINE) or len(self.figures) != len(before.figures):
            return self.whole()
        pairs = enumerate(zip(before.figures, self.figures, strict=True))
        message = {
            "parts": {name: part for name, part in self.parts.items() if before.parts.get(name) != part},
            "patches": {index: patch for index, (old, new) in pairs if (patch := figure_patch(old, new)) is not None},
            "values": self.values if self.values != before.values else {},
        }
        return message if any(message.values()) else None


def figure_patch(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any] | None:
    """What makes the figure `new` of `old`; None where they are the same."""
    if old == new:
        return None
    traces, before = new["data"], old["data"]
    if [trace.keys() for trace in traces] != [trace.keys() for trace in before]:
        return {"figure": new}
    changed = {
        index: {
            key: _value_patch(before[index][key], value) for key, value in trace.items() if before[index][key] != value
        }
        for index, trace in enumerate(traces)
        if trace != before[index]
    }
    return {"traces": changed} | ({"layout": new["layout"]} if old["layout"] != new["layout"] else {})


def _value_patch(old: Any, new: Any) -> dict[str, Any]:
    if not (isinstance(old, list | tuple) and isinstance(new, list | tuple)):
        return {"value": new}
    num_kept = min(len(old), len(new))
    step = 1
    while num_kept > 0 and old[:num_kept] != new[:num_kept]:  # what goes on differs in its last few entries only
        num_kept, step = max(0, num_kept - step), 2 * step
    return {"from": num_kept, "values": new[num_kept:]}
