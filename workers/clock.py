"""The time of day as a run's files have it: UTC, ISO 8601, to the microsecond."""

from datetime import UTC, datetime

TIME_PATTERN = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$"


def utc_now() -> str:
    """This moment, as 2026-11-29T17:10:01.123456Z."""
    return format_time(datetime.now(UTC).timestamp())


def format_time(seconds: float) -> str:
    """The moment so many seconds after the epoch."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def parse_time(text: str) -> float:
    """Seconds since the epoch.

    Raises:
        ValueError: it is no time in ISO 8601, or does not say of which zone.
    """
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"{text!r} does not say of which zone it is; write UTC with a Z")
    return time.timestamp()
