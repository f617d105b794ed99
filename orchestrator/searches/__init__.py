"""Searches: which runs `raymix tune` trains, and what follows from their results. Pure: no Ray, no runs, no files.

base.py       what every search and its settings are, and the one number that is minimised
space.py      where the values come from, as points that can be drawn and moved
table.py      the searches, those of installed plugins included

To add one, write a file with a config class (its `type` names it) and a subclass of `Search`, and give it a line in the
table. A search in a separate package is an entry point: docs/extending.md.
"""

from typing import TYPE_CHECKING

from orchestrator.searches.base import Proposal, Search, SearchConfig, SearchedRun, Trial
from workers.plugins import names_of_table

if TYPE_CHECKING:
    from orchestrator.searches.table import SEARCHES, AnySearchConfig, build_search

__all__ = ["SEARCHES", "AnySearchConfig", "Proposal", "Search", "SearchConfig", "SearchedRun", "Trial", "build_search"]

__getattr__ = names_of_table("orchestrator.searches.table", __all__)
