"""The outcome of a run from its files: summary.json if it exists, else the state so far."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.runs.folder import RunFolder, read_run
from orchestrator.runs.records import BestEvaluation, DomainSummary, LossCourse, RunSummary
from orchestrator.runs.verdict import DomainCourse, decide, domain_course, find_divergence, has_broken_off
from workers.durable import write_durably
from workers.validation.domain_losses import mean_course, worst_course


def write_summary(folder: Path, num_bad_rows: Mapping[str, int]) -> None:
    """Write summary.json of a run that has ended; `num_bad_rows` is the number of unreadable rows by domain."""
    run = read_run(folder)
    summary = summarise(run)
    for name, domain in summary.domains.items():
        domain.num_bad_rows = num_bad_rows[name]
    write_durably(folder / "summary.json", summary.model_dump_json(indent=1).encode())


def evaluation_losses(run: RunFolder) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """Steps of the evaluations, and each domain's loss there; NaN if not measured or not finite."""
    feedback = run.feedback
    steps = np.array([item.step for item in feedback], dtype=np.int64)
    losses = {domain: np.array([item.loss_nats(domain) for item in feedback]) for domain in run.domains}
    return steps, {domain: np.where(np.isfinite(values), values, np.nan) for domain, values in losses.items()}


def base_losses(run: RunFolder) -> dict[str, float]:
    """Each domain's loss with the base model (step 0); NaN if not measured."""
    steps, losses = evaluation_losses(run)
    is_measured = len(steps) > 0 and steps[0] == 0
    return {domain: float(values[0]) if is_measured else math.nan for domain, values in losses.items()}


def summarise(run: RunFolder) -> RunSummary:
    """summary.json if the run has ended, else what it would be if the run ended now."""
    return run.summary or _compute_summary(run)


def _compute_summary(run: RunFolder) -> RunSummary:
    num_tokens = run.metrics.column("num_tokens")
    with np.errstate(divide="ignore", invalid="ignore"):
        step_seconds = num_tokens / run.metrics.column("tokens_per_second")
    seconds = float(step_seconds[np.isfinite(step_seconds)].sum())
    tokens = int(np.nansum(num_tokens))
    steps, losses = evaluation_losses(run)
    mean_E, worst_E = mean_course(losses, len(steps)), worst_course(losses, len(steps))
    criterion = str(run.setting("evaluation", "best") or "mean")
    judged_E = {"mean": mean_E, "worst": worst_E, **losses}.get(criterion, mean_E)
    best = int(np.nanargmin(judged_E)) if np.isfinite(judged_E).any() else None  # the first of equal ones
    courses = {domain: domain_course(domain, run.feedback, run.path) for domain in losses}
    divergence = find_divergence(run.metrics)
    not_finite = [domain for domain, values in losses.items() if len(steps) > 1 and not np.isfinite(values[-1])]
    verdict = decide(
        run.feedback,
        judged_E,
        courses,
        has_diverged=divergence is not None or bool(not_finite),
        has_broken_off=has_broken_off(run.events),
    )
    weights = run.weights
    started_at, ended_at = run.times
    return RunSummary(
        name=run.name,
        steps=run.metrics.last_step,
        seconds=seconds,
        num_tokens=tokens,
        tokens_per_second=tokens / seconds if seconds > 0 else math.nan,
        weights_versions=len(weights),
        mixing_type=str(run.setting("mixing", "type") or (weights[0].by if weights else "-")),
        verdict=verdict,
        started_from=run.setting("start", "run"),
        divergence=divergence,
        not_finite=not_finite,
        started_at=started_at,
        ended_at=ended_at,
        best=None
        if best is None
        else BestEvaluation(step=int(steps[best]), criterion=criterion, loss_nats=float(judged_E[best])),
        isolation=run.isolation,
        mean_loss_nats=_course(steps, mean_E, best),
        worst_loss_nats=_course(steps, worst_E, best),
        domains={
            domain: _summarise_domain(run, domain, _course(steps, losses[domain], best), courses[domain])
            for domain in losses
        },
    )


def _summarise_domain(run: RunFolder, domain: str, losses: LossCourse, course: DomainCourse) -> DomainSummary:
    share_V = np.array([version.shares.get(domain, math.nan) for version in run.weights])
    version_S = run.metrics.column("weights_version")
    version_S = version_S[version_S < len(share_V)].astype(np.int64)
    trained_S = share_V[version_S] if len(version_S) else share_V[:1]  # before the first step, the share it will have
    return DomainSummary(
        loss_nats_start=losses.start,
        loss_nats_best=losses.best,
        loss_nats_end=losses.end,
        lowest_epochs=_epochs_at(run, domain, course.lowest_step),
        share_initial=_finite(share_V[0]) if len(share_V) else None,
        share_final=_finite(trained_S[-1]) if len(trained_S) else None,
        share_mean=_finite(trained_S.mean()) if len(version_S) else None,
        rows_seen=int(np.nansum(run.metrics.column(f"rows/{domain}"))),
        epochs=_finite(run.metrics.last(f"epochs/{domain}")),
        **vars(course),
    )


def _epochs_at(run: RunFolder, domain: str, step: int | None) -> float | None:
    """Passes over the domain after a number of steps; None for a domain that is only measured."""
    key = f"epochs/{domain}"
    if step is None or key not in run.metrics.keys:
        return None
    epochs = run.metrics.column(key)[run.metrics.steps <= step]
    return _finite(epochs[-1]) if len(epochs) else 0.0


def _course(steps: NDArray[np.int64], values: NDArray[np.float64], best: int | None) -> LossCourse:
    if not len(values):
        return LossCourse()
    return LossCourse(
        start=_finite(values[0]) if steps[0] == 0 else None,
        best=_finite(values[best]) if best is not None else None,
        end=_finite(values[-1]),
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
