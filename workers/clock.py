"""Time of day as it is written in a run's files: UTC, ISO 8601, microseconds."""

from datetime import UTC, datetime

TIME_PATTERN = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$"


def utc_now() -> str:
    """The current time, as 2026-11-29T17:10:01.123456Z."""
    return format_time(datetime.now(UTC).timestamp())


def format_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_time(text: str) -> float:
    """Seconds since the epoch; ValueError if the text is not an ISO 8601 time, or names no time zone."""
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone; write UTC, with a Z at the end")
    return time.timestamp()
