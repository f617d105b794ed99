"""One colour per domain, the same in the terminal and in every plot, readable on light and on dark."""

import colorsys
from collections.abc import Sequence

COLORS = (
    "#4f7fc9", "#e08e3c", "#3fa37c", "#c9607f", "#8f70cc", "#b39a30", "#2fa0b8", "#a5714f", "#8792a2", "#d7705f",
)  # fmt: skip
GOLDEN_ANGLE = 0.381966  # of the hue circle: neighbours in the list stay far apart in hue


def color_by_name(names: Sequence[str]) -> dict[str, str]:
    """The colour of each name as #rrggbb, by its place in the list."""
    return {name: _color(index) for index, name in enumerate(names)}


def _color(index: int) -> str:
    if index < len(COLORS):
        return COLORS[index]
    red, green, blue = colorsys.hls_to_rgb((index * GOLDEN_ANGLE) % 1.0, 0.55, 0.45)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
