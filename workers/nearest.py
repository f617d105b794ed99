"""Suggestions for unknown names."""

import difflib
from collections.abc import Collection, Iterable

_MAX_LISTED = 20


def find_nearest(name: str, known: Iterable[str]) -> str | None:
    """The most similar known name, ignoring case; otherwise the one with the most similar word in it."""
    by_folded = {each.casefold(): each for each in known}
    if near := difflib.get_close_matches(name.casefold(), by_folded, 1):
        return by_folded[near[0]]
    words = {word: each for folded, each in by_folded.items() for word in folded.split("_")}
    near = difflib.get_close_matches(name.casefold(), words, 1, cutoff=0.75)
    return words[near[0]] if near else None


def meant(unknown: Iterable[str], known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the first unknown name that resembles a known one; otherwise nothing."""
    names = list(known)
    near = next((found for name in unknown if (found := find_nearest(name, names))), None)
    return f" (did you mean {near!r}?)" if near else ""


def suggest(name: str, known: Collection[str], otherwise: str = "known") -> str:
    """The end of a sentence about an unknown name: the nearest known name, or a list of all."""
    if near := find_nearest(name, known):
        return f"; did you mean {near!r}?"
    listed = list(known)
    more = f" and {len(listed) - _MAX_LISTED:,} more" if len(listed) > _MAX_LISTED else ""
    return f"; {otherwise}: {', '.join(listed[:_MAX_LISTED])}{more}"


def refuse_unknown(key: str, names: Iterable[str], known: Collection[str], what: str = "domains") -> None:
    """ValueError for names that are not among a run's known ones, with the key and the nearest known name."""
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{key}: {unknown} are not {what} of this run{meant(unknown, known)}; they are {list(known)}")
