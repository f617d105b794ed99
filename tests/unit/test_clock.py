"""Times in a run's files: UTC with a Z, in an order that text has too, and read back as they were."""

import json
import re
from datetime import datetime
from pathlib import Path

import pytest

from workers.clock import TIME_PATTERN, format_time, parse_time, utc_now
from workers.events import log_event


@pytest.mark.parametrize("zone", ["UTC", "America/St_Johns", "Pacific/Apia"])
def test_a_time_is_utc_wherever_the_machine_stands(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    assert format_time(1_800_000_000.5) == "2027-01-15T08:00:00.500000Z"
    assert format_time(1_800_000_000) == "2027-01-15T08:00:00.000000Z"  # a whole second too
    assert parse_time(format_time(1_800_000_000.123456)) == 1_800_000_000.123456
    now = utc_now()
    assert re.match(TIME_PATTERN, now)
    assert abs(parse_time(now) - datetime.now().timestamp()) < 5


def test_a_time_without_its_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        parse_time("2027-01-15T08:00:00")


def test_an_event_says_when_it_was_noted(tmp_path: Path) -> None:
    before = utc_now()
    log_event(tmp_path, 3, "stop", "asked")
    event = json.loads((tmp_path / "events.jsonl").read_text())
    assert before <= event.pop("time") <= utc_now()
    assert event == {"step": 3, "kind": "stop", "message": "asked"}
