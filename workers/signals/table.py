"""The table of signals, including those of installed plugins."""

from collections.abc import Callable, Sequence
from typing import Any

from workers.plugins import with_plugins
from workers.signals.examples import Signal
from workers.signals.hidden_similarity import HiddenSimilarity
from workers.signals.perplexity_ratio import PerplexityRatio

_OWN: dict[str, Callable[[Sequence[str], str | None], Signal]] = {
    "hidden_similarity": HiddenSimilarity,
    "perplexity_ratio": PerplexityRatio,
}


def _fault(name: str, entry: Any) -> str | None:
    """Why an object cannot be the signal of this name."""
    if ":" in name:
        return "has a colon in its name, which separates a name from its parameter"
    missing = [part for part in ("sums", "values") if not callable(getattr(entry, part, None))]
    return f"is not a signal: it has no {' and no '.join(missing)}" if missing else None


SIGNALS = with_plugins("raymix.signals", _OWN, _fault)


def build_signal(name: str, domains: Sequence[str]) -> Signal:
    """The signal of this name and parameter; ValueError if there is none, or it does not accept the parameter."""
    kind, _, parameter = name.partition(":")
    if kind not in SIGNALS:
        raise ValueError(f"signal {name!r} is not known; known: {', '.join(SIGNALS)}")
    return SIGNALS[kind](domains, parameter or None)
