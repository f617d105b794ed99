"""One colour per domain, the same in the terminal and in every plot, readable on light and dark backgrounds."""

import colorsys
from collections.abc import Iterable, Sequence

COLORS = (
    "#4f7fc9", "#e08e3c", "#3fa37c", "#c9607f", "#8f70cc", "#b39a30", "#2fa0b8", "#a5714f", "#8792a2", "#d7705f",
)  # fmt: skip
RUN_COLORS = ("#d1495b", "#2e86ab", "#6a994e", "#9d7bb0", "#bc8034", "#6c757d", "#26a69a", "#c06c9b")
GOLDEN_ANGLE = 0.381966  # of the hue circle: neighbours in the list stay far apart in hue


def color_by_name(names: Sequence[str]) -> dict[str, str]:
    return {name: _color(index) for index, name in enumerate(names)}


def color_by_run(labels: Iterable[str]) -> dict[str, str]:
    """The colour of each run by its label, different from the domains' colours."""
    return {label: RUN_COLORS[index % len(RUN_COLORS)] for index, label in enumerate(labels)}


def _color(index: int) -> str:
    if index < len(COLORS):
        return COLORS[index]
    red, green, blue = colorsys.hls_to_rgb((index * GOLDEN_ANGLE) % 1.0, 0.55, 0.45)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
