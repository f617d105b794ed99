"""Snapshots of the three pages: the list of runs, one run, several runs compared.

Tables and figures are those of the report. Plots are thinned in steady bins, so a running run only changes the ends of
its curves.
"""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.controller.operator import read_request, waiting_requests
from orchestrator.dashboard.catalog import Catalog, Glance, last_written
from orchestrator.dashboard.following import OUTLINE, Snapshot
from orchestrator.dashboard.states import ENDED, State, driver_process, health_facts, lock_holders, run_state
from orchestrator.runs.folder import RunFolder
from orchestrator.views.format import color_by_name, format_count, format_duration
from orchestrator.views.report.benchmarks import benchmark_sections
from orchestrator.views.report.comparison import all_domains, comparison_sections, runs_table
from orchestrator.views.report.figures import Thinning, figures_json
from orchestrator.views.report.html import run_values
from orchestrator.views.report.run_figures import run_sections
from orchestrator.views.table import environment

LIVE = Thinning(max_points=600, is_steady=True)

templates = environment("orchestrator.dashboard", "orchestrator.views.report")
templates.filters |= {"duration": format_duration}


class ListPage:
    """All runs, a part for each, so that a running run only changes its own line."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def look(self) -> Snapshot:
        glances = self._catalog.glances()
        groups: dict[str, list[Glance]] = {}
        for glance in glances:
            groups.setdefault(glance.group, []).append(glance)
        num_running = sum(glance.state == "running" for glance in glances)
        parts = {
            OUTLINE: templates.get_template("run_list.html").render(glances=glances, groups=groups),
            "count": f"{len(glances):,} run{'s' if len(glances) != 1 else ''}, {num_running:,} running",
        }
        parts |= {f"group:{name}": _states(group) for name, group in groups.items() if name}
        row = templates.get_template("run_row.html")
        return Snapshot(parts | {f"row:{glance.name}": row.render(run=glance) for glance in glances})


def _states(glances: Sequence[Glance]) -> str:
    """12 runs: 3 running, 9 finished"""
    counts = Counter(glance.state for glance in glances)
    listed = ", ".join(f"{count:,} {state}" for state, count in counts.most_common())
    return f"{len(glances):,} run{'s' if len(glances) != 1 else ''}: {listed}"


class _Follower:
    """A run's files, read incrementally; from the start if the folder was removed and a new run began in it."""

    def __init__(self, folder: Path) -> None:
        self.run = RunFolder(folder)
        self._first_written: int | None = None

    def refresh(self) -> bool:
        try:
            first_written = (self.run.path / "weights" / "000000.json").stat().st_mtime_ns
        except OSError:
            first_written = None
        if first_written != self._first_written:
            self.run, self._first_written = RunFolder(self.run.path), first_written
        return self.run.refresh()


class RunPage:
    def __init__(self, catalog: Catalog, name: str) -> None:
        self._follower = _Follower(catalog.folder(name))
        self._shown: tuple[Any, ...] | None = None
        self._is_stale = True

    def look(self) -> Snapshot | None:
        self._is_stale |= self._follower.refresh()
        run = self._follower.run
        holders = lock_holders()
        written_at = last_written(run.path)
        pace = run.metrics.recent_seconds_per_step()
        state = run_state(run.path, holders, len(run.metrics) > 0, written_at, pace)
        waiting = waiting_requests(run.path)
        shown = (state, driver_process(run.path, holders), waiting)
        if not self._is_stale and shown == self._shown:
            return None
        snapshot = _run_snapshot(run, state, shown[1], waiting, written_at)
        self._shown, self._is_stale = shown, False  # only now, so that a failed snapshot is tried again
        return snapshot


def _run_snapshot(run: RunFolder, state: State, process: int | None, waiting: list[str], written_at: float) -> Snapshot:
    sections, shown = run_sections(run, LIVE), run_values(run)
    weights = run.weights_at(run.metrics.last_step + (run.summary is None))  # for the next step; if finished, the last
    common = shown | {
        "state": state,
        "facts": _facts(run, state, shown["facts"]),
        "health": health_facts(run, state, process),
        "events": shown["events"][::-1],
        "progress": _progress(run),
        "weights": weights,
        "waiting": [_waiting(run, request) for request in waiting],
        "sections": sections,
    }
    names = {part: f"run_{part}.html" for part in ("head", "numbers", "health", "weights", "steer")}
    names |= {part: f"{part}.html" for part in ("verdict", "events", "domains", OUTLINE)}
    parts = {part: templates.get_template(template).render(common) for part, template in names.items()}
    parts["table"] = shown["table"].to_html()
    values: dict[str, Any] = {"is_over": state in ENDED, "written_at": written_at if state == "running" else None}
    if weights is not None:
        values |= {"shares": weights.shares, "pinned": weights.pinned}
    return Snapshot(parts, figures_json(sections), values)


def _waiting(run: RunFolder, request_id: str) -> str:
    try:
        request = read_request(run.path, request_id)
    except (OSError, ValueError):  # just taken up, or not a valid request
        return request_id
    shares = ", ".join(f"{name} {share:.3g}" for name, share in request.shares.items())
    return " ".join(part for part in (request.kind, shares, ", ".join(request.domains), f"by {request.by}") if part)


def _progress(run: RunFolder) -> dict[str, Any]:
    step, total = run.metrics.last_step, run.total_steps
    seconds = run.metrics.recent_seconds_per_step()
    left = (total - step) * seconds if total and run.summary is None else math.nan
    part = min(step / total, 1.0) if total else 0.0
    return {"step": step, "total": total, "part": part, "left": format_duration(left)}


def _facts(run: RunFolder, state: State, report: dict[str, str]) -> dict[str, str]:
    """The report's facts, losses first, without the step, which is shown with the progress."""
    facts = {name: report[name] for name in ("Mean loss", "Worst loss")} | report
    del facts["Steps"]
    if state in ("running", "waiting"):
        facts["Tokens per second"] = format_count(run.metrics.recent_tokens_per_second())
    return facts


class ComparePage:
    def __init__(self, catalog: Catalog, names: Sequence[str]) -> None:
        self._followers = [_Follower(catalog.folder(name)) for name in names]
        self._is_stale = True

    def look(self) -> Snapshot | None:
        self._is_stale |= any([follower.refresh() for follower in self._followers])
        runs = [follower.run for follower in self._followers]
        if not self._is_stale:
            return None
        sections = [*benchmark_sections(runs), *comparison_sections(runs, LIVE)]
        common = {"domain_colors": color_by_name(all_domains(runs)), "sections": sections}
        names = {"domains": "domains.html", OUTLINE: "sections.html"}
        parts = {part: templates.get_template(template).render(common) for part, template in names.items()}
        snapshot = Snapshot(parts | {"table": runs_table(runs).to_html()}, figures_json(sections))
        self._is_stale = False
        return snapshot
