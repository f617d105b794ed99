"""Recorded values, in JSON files beside the tests, and their comparison.

A difference is a fault until somebody decides otherwise. To record again, on purpose and after reading the difference:

    RAYMIX_RECORD_GOLDEN=1 python -m pytest -n 0 tests/golden && git diff tests/golden/data
"""

import json
import os
from difflib import unified_diff
from pathlib import Path
from typing import Any

_DATA = Path(__file__).parent / "data"
_RECORDS = bool(os.environ.get("RAYMIX_RECORD_GOLDEN"))
_HOW = "RAYMIX_RECORD_GOLDEN=1 python -m pytest -n 0 tests/golden"
_MAX_SHOWN = 12


def recorded(file: str, key: str) -> Any:
    """What is recorded under a key of a file."""
    return _read(file)[key]


def check_recorded(file: str, key: str, found: Any, why: str) -> None:
    """Compare plain data with what is recorded under the key, exactly but for the order of keys.

    Args:
        file: name of the data file without its ending.
        key: where in it.
        found: dictionaries, lists, strings and numbers.
        why: what a difference does to a user.
    """
    found = json.loads(json.dumps(found))
    if _RECORDS:
        path = _DATA / f"{file}.json"
        content = (_read(file) if path.exists() else {}) | {key: found}
        _DATA.mkdir(exist_ok=True)
        path.write_text(_laid_out(content) + "\n", encoding="utf-8")
        return
    assert key in _read(file), f"{file}.json: nothing is recorded for {key!r}. Where it is new: {_HOW}"
    different = _differences(recorded(file, key), found, key)
    shown = "\n".join(f"  {line}" for line in different[:_MAX_SHOWN])
    assert not different, (
        f"{file}.json: {len(different)} values differ from the recorded ones. {why}\n{shown}\n"
        f"Where the change is meant: {_HOW}"
    )


def check_recorded_text(name: str, found: str, why: str) -> None:
    """Compare text with the recorded file of this name, byte for byte; `why` as in `check_recorded`."""
    path = _DATA / name
    if _RECORDS:
        path.write_text(found, encoding="utf-8")
        return
    before = path.read_text(encoding="utf-8").splitlines(keepends=True)
    different = list(unified_diff(before, found.splitlines(keepends=True), "recorded", "found", n=0))[2:]
    shown = "".join(f"  {line}" for line in different[:_MAX_SHOWN])
    assert not different, f"{name} differs from the recorded one. {why}\n{shown}Where the change is meant: {_HOW}"


def _read(file: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((_DATA / f"{file}.json").read_text(encoding="utf-8"))
    return content


def _laid_out(value: Any, margin: str = "") -> str:
    """JSON with a line for each key, and for each list without further lists or dictionaries in it."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    if not inner or not (isinstance(value, dict) or any(isinstance(each, dict | list) for each in inner)):
        return json.dumps(value, ensure_ascii=False)
    keys = [f"{json.dumps(key, ensure_ascii=False)}: " for key in value] if isinstance(value, dict) else None
    lines = [
        f"{margin} {key}{_laid_out(each, margin + ' ')}"
        for key, each in zip(keys or [""] * len(inner), inner, strict=True)
    ]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return "\n".join([opening, ",\n".join(lines), f"{margin}{closing}"])


def _differences(before: Any, now: Any, place: str) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        lines = [
            line for key in before.keys() & now.keys() for line in _differences(before[key], now[key], f"{place}/{key}")
        ]
        lines += [f"{place}/{key}: is gone" for key in before.keys() - now.keys()]
        lines += [f"{place}/{key}: is new" for key in now.keys() - before.keys()]
        return sorted(lines)
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [line for index, (one, other) in pairs for line in _differences(one, other, f"{place}[{index}]")]
    # Not by == alone: 1 == 1.0 == True.
    return [] if json.dumps(before) == json.dumps(now) else [f"{place}: was {before!r}, is {now!r}"]
