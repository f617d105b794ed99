"""What came out of a run, finished or not: from summary.json where it is there, else from the files so far."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.run_folder import RunFolder
from orchestrator.run_records import BestEvaluation, DomainSummary, LossCourse, RunSummary


@dataclass(frozen=True)
class RunResult:
    """The figures of the tables; the losses in nats per loss token."""

    algorithm: str
    model: str
    num_steps: int
    total_steps: int | None
    is_finished: bool
    num_tokens: int
    seconds: float
    tokens_per_second: float
    num_versions: int
    best_step: int | None
    mean_loss_nats: LossCourse
    worst_loss_nats: LossCourse
    domains: dict[str, DomainSummary]


def compute_result(run: RunFolder) -> RunResult:
    """The result of a run as far as it has come."""
    summary = run.summary or _summarise(run)
    return RunResult(
        algorithm=summary.mixing_type,
        model=str(run.setting("model", "path") or "-"),
        num_steps=summary.steps,
        total_steps=run.total_steps,
        is_finished=run.summary is not None,
        num_tokens=summary.num_tokens,
        seconds=summary.seconds,
        tokens_per_second=summary.tokens_per_second,
        num_versions=summary.weights_versions,
        best_step=summary.best.step if summary.best else None,
        mean_loss_nats=summary.mean_loss_nats,
        worst_loss_nats=summary.worst_loss_nats,
        domains=summary.domains,
    )


def evaluation_losses(run: RunFolder) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """Steps of the evaluations, and each domain's loss at them; NaN where it was not measured or not finite."""
    feedback = run.feedback
    steps = np.array([item.step for item in feedback], dtype=np.int64)
    losses = {domain: np.array([item.loss_nats(domain) for item in feedback]) for domain in run.domains}
    return steps, {domain: np.where(np.isfinite(values), values, np.nan) for domain, values in losses.items()}


def base_losses(run: RunFolder) -> dict[str, float]:
    """Each domain's loss under the base model (step 0); NaN where that was not measured."""
    steps, losses = evaluation_losses(run)
    has_base = steps.size > 0 and steps[0] == 0
    return {domain: float(values[0]) if has_base else math.nan for domain, values in losses.items()}


def _summarise(run: RunFolder) -> RunSummary:
    """The summary that the run would leave if it ended here."""
    num_tokens = run.metrics.column("num_tokens")
    with np.errstate(divide="ignore", invalid="ignore"):
        step_seconds = num_tokens / run.metrics.column("tokens_per_second")
    seconds = float(step_seconds[np.isfinite(step_seconds)].sum())
    tokens = int(np.nansum(num_tokens))
    steps, losses = evaluation_losses(run)
    matrix_DE = np.array(list(losses.values())).reshape(len(losses), len(steps))
    unknown_E = np.full(len(steps), np.nan)
    mean_E = matrix_DE.mean(axis=0) if losses else unknown_E
    worst_E = matrix_DE.max(axis=0) if losses else unknown_E
    criterion = str(run.setting("evaluation", "best") or "mean")
    judged_E = {"mean": mean_E, "worst": worst_E, **losses}.get(criterion, mean_E)
    best = int(np.nanargmin(judged_E)) if np.isfinite(judged_E).any() else None
    weights = run.weights
    courses = {domain: _course(steps, values, best) for domain, values in losses.items()}
    return RunSummary(
        name=run.name,
        steps=run.metrics.last_step,
        seconds=seconds,
        num_tokens=tokens,
        tokens_per_second=tokens / seconds if seconds > 0 else math.nan,
        weights_versions=len(weights),
        mixing_type=str(run.setting("mixing", "type") or (weights[0].by if weights else "-")),
        best=BestEvaluation(step=int(steps[best]), criterion=criterion) if best is not None else None,
        mean_loss_nats=_course(steps, mean_E, best),
        worst_loss_nats=_course(steps, worst_E, best),
        domains={
            domain: DomainSummary(
                loss_nats_start=course.start,
                loss_nats_best=course.best,
                loss_nats_end=course.end,
                share_initial=weights[0].shares.get(domain) if weights else None,
                share_final=weights[-1].shares.get(domain) if weights else None,
                epochs=_finite(run.metrics.last(f"epochs/{domain}")),
            )
            for domain, course in courses.items()
        },
    )


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
