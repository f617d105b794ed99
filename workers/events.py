"""events.jsonl: what happened in a run that the user should know, one line per event."""

import json
from pathlib import Path

from workers.clock import utc_now

EVENTS_FILE = "events.jsonl"


def log_event(run_folder: Path, step: int, kind: str, message: str) -> None:
    """Append one event with the current time; `kind` is for filtering, `message` for reading."""
    with (run_folder / EVENTS_FILE).open("a") as file:
        file.write(json.dumps({"step": step, "time": utc_now(), "kind": kind, "message": message}) + "\n")
