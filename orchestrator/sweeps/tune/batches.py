"""Trials trained batch by batch: what a search proposes, until it proposes nothing more.

A trial that is a stage of a plan shares its earlier stages with other trials by their digests, and the best of them is
a configuration like any other.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config.errors import ConfigError
from orchestrator.config.run import RunConfig
from orchestrator.searches import Proposal, Search, Trial
from orchestrator.sweeps.crews import SideBySide
from orchestrator.sweeps.run import train_runs
from orchestrator.sweeps.stages.records import read_records
from orchestrator.sweeps.tune.results import TrialRecord, read_trial
from orchestrator.sweeps.tune.trials import Trials, note_trial
from orchestrator.sweeps.work import Work


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    records: list[TrialRecord]
    runs: dict[str, RunConfig]
    """Of the records, by name."""
    notes: list[str]


def train_batches(trials: Trials, search: Search[Any], work: Work) -> Found:
    """Train batch after batch, inside a Ray session."""
    done: list[Trial] = []
    found = Found([], {}, [])
    number, before = 0, dict[str, RunConfig]()
    while proposals := search.next_trials(done):
        number += 1
        of_proposals = [_run_of(trials, proposal) for proposal in proposals]
        runs = {run.name: run for run in of_proposals if run is not None}
        work.console.print(f"{search.title(number)}: {len(runs)} runs", markup=False, highlight=False)
        crew = SideBySide(work.console, at_most=search.max_concurrent)
        keeps_models = any(proposal.num_steps for proposal in proposals)
        failures = train_runs(list(runs.values()), work, crew, keeps_models=keeps_models) if runs else {}
        _drop_models(run.folder for run in before.values())
        before = runs
        records = [_record(trials, *each, failures) for each in zip(proposals, of_proposals, strict=True)]
        done += [
            Trial(proposal, record.name, record.state, record.losses_nats, record.score)
            for proposal, record in zip(proposals, records, strict=True)
        ]
        earlier = [] if search.shows_last_batch_only else found.records
        found = Found([*earlier, *records], found.runs | runs, [])
    _drop_models(run.folder for run in before.values())
    return Found(found.records, found.runs, search.conclude(done))


def _run_of(trials: Trials, proposal: Proposal) -> RunConfig | None:
    """None where the values break the run's own rules."""
    try:
        run = trials.plan_of(proposal)
    except ConfigError:
        return None
    if proposal.num_steps is None:
        note_trial(run.folder, proposal.changes, proposal.point)
    return run


def _record(trials: Trials, proposal: Proposal, run: RunConfig | None, failures: dict[str, str]) -> TrialRecord:
    changes = dict(proposal.changes)
    if proposal.num_steps is not None:
        numbered = enumerate(proposal.chain, start=1)
        changes = {f"{key} ({place})": value for place, each in numbered for key, value in each.changes.items()}
    if run is None:
        return TrialRecord.failed("-", trials.base.output_dir, changes, "the values do not fit together")
    if reason := failures.get(run.name):
        return TrialRecord.failed(run.name, run.folder, changes, reason)
    parts = [run.folder] if proposal.num_steps is None else [stage.folder for stage in read_records(run.folder)]
    return read_trial(trials, run.folder, changes, "finished", parts)


def _drop_models(folders: Iterable[Path]) -> None:
    """Remove models and checkpoints of plans that nothing starts from any more."""
    for folder in folders:
        if (folder / "stages.json").exists():
            for record in read_records(folder):
                for part in ("checkpoints", "model"):
                    shutil.rmtree(record.folder / part, ignore_errors=True)
