"""Numbers, names and values as text, and the colours of domains and runs, for the terminal and for pages. Pure.

Losses, changes and errors are in nats per token; an unknown or non-finite number is a dash.
"""

import colorsys
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.runs.benchmark_record import MetricScores, Score
from workers.contracts import Change

NOTHING = "-"
PLUS_MINUS = "\u00b1"
ERROR_NOTE = f"{PLUS_MINUS} is one standard error over the held-out examples"
# One colour per domain, the same in the terminal and in every plot, readable on light and dark backgrounds.
COLORS = (
    "#4f7fc9", "#e08e3c", "#3fa37c", "#c9607f", "#8f70cc", "#b39a30", "#2fa0b8", "#a5714f", "#8792a2", "#d7705f",
)  # fmt: skip
RUN_COLORS = ("#d1495b", "#2e86ab", "#6a994e", "#9d7bb0", "#bc8034", "#6c757d", "#26a69a", "#c06c9b")
GOLDEN_ANGLE = 0.381966  # of the hue circle: neighbours in the list stay far apart in hue


def printable(text: object) -> str:
    """The text with control, direction and line break characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def format_duration(seconds: float | None) -> str:
    """4 s, 12 min 30 s, 3 h 05 min, 2 d 4 h."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    if total < 86_400:
        return f"{total // 3600} h {total % 3600 // 60:02d} min"
    return f"{total // 86_400} d {total % 86_400 // 3600} h"


def format_count(count: float | None) -> str:
    """12,345; also for a mean of counts and for tokens per second."""
    return NOTHING if count is None or not math.isfinite(count) else f"{count:,.0f}"


def format_choices(numbers: Sequence[int]) -> str:
    """`4`; `2, 4 or 8`"""
    *others, last = map(str, numbers)
    return f"{', '.join(others)} or {last}" if others else last


def format_workers(setting: Any) -> str:
    """The number of workers in a run's configuration: `4`; `2 to 8` for an elastic group."""
    if isinstance(setting, Mapping):
        return f"{setting.get('min', NOTHING)} to {setting.get('max', NOTHING)}"
    return NOTHING if setting is None else f"{setting}"


def format_loss(loss_nats: float | None) -> str:
    """1.234"""
    return NOTHING if loss_nats is None or not math.isfinite(loss_nats) else f"{loss_nats:.3f}"


def format_error(error: float | None) -> str:
    """` ±0.012`, to follow a number; empty if it is not known."""
    return "" if error is None or not math.isfinite(error) else f" {PLUS_MINUS}{error:.3f}"


def format_change(change: Change) -> str:
    """`-0.123 ±0.004`"""
    return f"{change.nats:+.3f}{format_error(change.standard_error)}"


def format_share(share: float | None) -> str:
    """12.5%"""
    return NOTHING if share is None else f"{share:.1%}"


def format_epochs(epochs: float | None) -> str:
    """1.53"""
    return NOTHING if epochs is None or not math.isfinite(epochs) else f"{epochs:.2f}"


def format_score(score: Score) -> str:
    """A benchmark's score: `0.412 ±0.010`"""
    if score.value is None:
        return NOTHING
    return _number(score.value) + ("" if score.stderr is None else f" {PLUS_MINUS}{_number(score.stderr)}")


def format_score_change(metric: MetricScores) -> str:
    return NOTHING if metric.change is None else f"{metric.change:+.3f}"


def format_value(value: Any) -> str:
    """The value of a configuration key: short numbers, shares in per cent."""
    if value is None:
        return NOTHING
    if isinstance(value, float):
        return f"{value:.4g}"
    if is_shares(value):
        return ", ".join(f"{name} {format_share(share)}" for name, share in value.items())
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {format_value(part)}" for key, part in value.items())
    return str(value)


def is_shares(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(part, float) for part in value.values())


def short(key: str) -> str:
    return key.rpartition(".")[2]


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


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
