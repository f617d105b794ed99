"""Cases for every run of the tests, and more of the same kind for the long ones (`make test-all`)."""

from collections.abc import Iterable
from typing import Any

import pytest


def few(cases: Iterable[Any], keep: int) -> list[Any]:
    """All the cases; those but `keep` of them, spread over the whole, are marked as soaks."""
    every = list(cases)
    kept = {round(place * (len(every) - 1) / max(keep - 1, 1)) for place in range(keep)}
    return [
        case if place in kept else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.soak)
        for place, case in enumerate(every)
    ]
