"""From a run's configuration to everything that its training needs, including what has to be measured first."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from orchestrator.config.run import RunConfig
from orchestrator.mixing import Measured, ResolvedMixing, resolve_mixing
from orchestrator.mixing.needs import REFERENCES, Numbers
from orchestrator.prepare.detection.driver import with_detected_shares
from orchestrator.prepare.findings import look_at_data
from orchestrator.prepare.importance import with_importance
from orchestrator.prepare.token_stores import DomainStores, template_day
from orchestrator.runs.records import DATA_FILE
from orchestrator.tracking.watch import TrackedRun
from orchestrator.training.driver import ReadyRun
from orchestrator.training.plan import budget_warning, build_plan, domain_sizes
from orchestrator.views.terminal import print_findings
from workers.durable import write_durably
from workers.events import log_event

MeasureReferences = Callable[[RunConfig], Mapping[str, float]]
"""Computes the reference losses of a run, in nats per token, by domain."""


def resolve_run(
    config: RunConfig,
    run_id: str,
    stores: Mapping[str, DomainStores],
    console: Console,
    measure_references: MeasureReferences,
    *,
    prints_findings: bool = True,
) -> ReadyRun:
    """Everything between the data and the training, inside a Ray session.

    What was measured is kept in the run's folder, which has to be locked, and used again when the run resumes, so that
    the conditions of its training do not change. `measure_references` is called if the mixing algorithm needs reference
    losses that are not known. `prints_findings` is False if an earlier run with the same data printed them.
    """
    # The order is that of the needs. Findings come first: they cost nothing, and a user can still interrupt before
    # anything is measured. The shares come before the budget and the plan, as `max_tokens` is converted to steps at the
    # initial mixture. The importance is written into the strategy, which the plan contains. The references are last:
    # they are trained with the same strategy, with a budget that follows from the run's steps, and they cost most.
    _note_findings(config, stores, console if prints_findings else None)
    config = with_detected_shares(config, console)
    if (warning := budget_warning(config, stores)) and not (config.folder / "metrics.jsonl").exists():
        log_event(config.folder, 0, "budget", warning)
        console.print(warning, style="yellow", markup=False, highlight=False)
    config = with_importance(config, stores, console)
    return ReadyRun(
        plan=build_plan(config, run_id, stores),
        mixing=_with_references(config, measure_references),
        sizes=domain_sizes(stores),
        cluster=config.cluster,
        num_bad_rows={name: domain.report.num_bad_rows for name, domain in stores.items()},
        tracked=TrackedRun(config.folder, run_id, tuple(config.tracking)),
    )


def write_references(path: Path, losses: Mapping[str, float]) -> None:
    """The file that `mixing.reference` can name."""
    write_durably(path, json.dumps({"loss_nats": dict(losses)}, indent=1).encode())


def _with_references(config: RunConfig, measure: MeasureReferences) -> ResolvedMixing:
    """The mixing settings with a reference loss for each domain if the algorithm needs them.

    The losses are written to reference.json in the run's folder, which a resumed run uses.
    """
    source, names = config.mixing.needs.references, config.trained_domains
    kept = config.folder / "reference.json"
    if not isinstance(source, str | Path):
        if source is not None:
            write_references(kept, source)
        return resolve_mixing(config.mixing, Measured(), names)
    if kept.exists():
        losses: Numbers = REFERENCES.read(kept)
    elif isinstance(source, Path):
        losses = REFERENCES.read(source)
    else:
        losses = measure(config)
    write_references(kept, losses)
    return resolve_mixing(config.mixing, Measured(references={source: {name: losses[name] for name in names}}), names)


def _note_findings(config: RunConfig, stores: Mapping[str, DomainStores], console: Console | None) -> None:
    """Report once, when the run starts, what happened to the rows of its data, and keep the counts in data.json."""
    if (config.folder / DATA_FILE).exists():
        return
    record = look_at_data(config.data, stores, template_day(config))
    write_durably(config.folder / DATA_FILE, record.model_dump_json(indent=1).encode())
    for finding in record.findings:
        log_event(config.folder, 0, finding.kind, finding.line)
    if console is not None:
        print_findings(console, record.findings)
