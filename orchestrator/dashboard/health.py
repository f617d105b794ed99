"""The health of a run as its files show it: restarts, pace, checkpoints, unreadable data."""

import math
from dataclasses import dataclass

import numpy as np

from orchestrator.dashboard.states import State
from orchestrator.runs.folder import RunFolder
from orchestrator.views.format import format_duration

SLOW_STEP = 3.0  # times the median


@dataclass(frozen=True)
class Fact:
    """A heading and its value; `is_worrying` if it needs attention."""

    name: str
    value: str
    is_worrying: bool = False


def health_facts(run: RunFolder, state: State, process: int | None) -> list[Fact]:
    """The first things to check if something seems wrong."""
    num_attempts = max(1, sum(event.kind == "attempt" for event in run.events))
    non_finite = sum(event.kind.startswith("non_finite") for event in run.events)
    facts = [
        Fact("Driver", _driver(state, process), state == "failed"),
        Fact("Workers", _workers(run)),
        Fact("Restarts", f"{num_attempts - 1:,}", num_attempts > 1),
        *_pace(run),
        *_evaluation(run),
        Fact("Last checkpoint", _last_checkpoint(run)),
        Fact("Not a number", f"{non_finite:,}", non_finite > 0),
        *_bad_rows(run),
    ]
    if run.num_unreadable_lines:
        facts.append(Fact("Unreadable lines", f"{run.num_unreadable_lines:,}", True))
    return facts


def _driver(state: State, process: int | None) -> str:
    if process is not None:
        return f"process {process}"
    return {"running": "on another machine", "waiting": "on another machine"}.get(state, "not running")


def _workers(run: RunFolder) -> str:
    num_workers, stage = run.setting("cluster", "num_workers"), run.setting("training", "deepspeed", "zero_stage")
    return ("-" if num_workers is None else f"{num_workers}") + ("" if stage is None else f", ZeRO-{stage}")


def _pace(run: RunFolder) -> list[Fact]:
    seconds = run.metrics.column("seconds")
    seconds = seconds[np.isfinite(seconds)]
    if not seconds.size:
        return []
    recent, median = float(run.metrics.recent("seconds").mean()), float(np.median(seconds))
    slow = int((seconds > SLOW_STEP * median).sum())
    return [
        Fact("Seconds per step", f"{recent:.2f} now, {median:.2f} median", recent > SLOW_STEP * median),
        Fact("Slow steps", f"{slow:,}, longest {format_duration(float(seconds.max()))}"),
    ]


def _evaluation(run: RunFolder) -> list[Fact]:
    seconds = [item.evaluation_seconds + item.signal_seconds for item in run.feedback]
    measured = [value for value in seconds if value > 0 and math.isfinite(value)]
    return [Fact("Last evaluation", f"{measured[-1]:.1f} s")] if measured else []


def _last_checkpoint(run: RunFolder) -> str:
    try:
        steps = [path.name.removeprefix("step-") for path in (run.path / "checkpoints").glob("step-[0-9]*")]
    except OSError:
        return "-"
    return f"step {max(map(int, filter(str.isdecimal, steps)), default=0):,}" if steps else "-"


def _bad_rows(run: RunFolder) -> list[Fact]:
    counts = [domain.num_bad_rows or 0 for domain in run.summary.domains.values()] if run.summary else []
    noted = [event for event in run.events if event.kind == "bad_rows"]
    if not counts and not noted:
        return []
    return [Fact("Bad rows", f"{sum(counts):,}" if counts else noted[-1].message, any(counts) or bool(noted))]
