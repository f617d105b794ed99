"""What a page shows at one moment, and what has changed since: only changes are sent.

    {"parts": {id: html}, "figures": [...], "values": {...}}     everything: the first message
    {"parts": {id: html}, "patches": {index: patch}, "values": {...}}

The patch of a figure has the traces and keys that changed; of a list that has grown, only its new end.
"""

from dataclasses import dataclass, field
from typing import Any

OUTLINE = "sections"  # the part with the placeholders of all figures


@dataclass(frozen=True)
class Snapshot:
    """HTML by element id, figures in the page's order, and values for its scripts."""

    parts: dict[str, str]
    figures: list[dict[str, Any]] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def whole(self) -> dict[str, Any]:
        return {"parts": self.parts, "figures": self.figures, "values": self.values}

    def changes(self, before: "Snapshot") -> dict[str, Any] | None:
        """The message that updates a page from `before` to this; None if nothing has changed."""
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
    """The patch that turns the figure `old` into `new`; None if they are equal."""
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
    while num_kept > 0 and old[:num_kept] != new[:num_kept]:  # a running run only changes the last few entries
        num_kept, step = max(0, num_kept - step), 2 * step
    return {"from": num_kept, "values": new[num_kept:]}
