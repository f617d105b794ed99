"""Tables that belong to the plots of a section."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rows:
    """Headings and the texts below them, of which the second of a row stands small below the first; `kinds` say of each
    row's last text whether it is better, worse or same."""

    headings: list[str]
    rows: list[list[str]]
    kinds: list[str]
