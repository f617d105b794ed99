"""What came of the runs of a comparison: compare.json."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel

from orchestrator.config.run import RunConfig
from orchestrator.config.sweep import SweepConfig
from orchestrator.runs.folder import read_run
from orchestrator.runs.records import RunSummary, Verdict
from orchestrator.sweeps.compare.statistics import (
    MeanEstimate,
    errors_of_differences,
    errors_of_losses,
    estimate,
    paired_difference,
    read_mean_losses,
)

MEAN, WORST = "mean_loss_nats", "worst_loss_nats"
TARGET_GAIN, ELSEWHERE = "target_gain_nats", "non_target_change_nats"
NUM_TOKENS, TRAINING_SECONDS = "num_tokens", "training_seconds"
EVALUATION_SECONDS, SIGNAL_SECONDS = "evaluation_seconds", "signal_seconds"
EQUAL_TOKENS_TOLERANCE = 0.01


class RunResult(BaseModel):
    """One finished run: its measures at the end of training."""

    seed: int
    folder: Path
    values: dict[str, float]
    verdict: Verdict | None = None
    """What came of it; see orchestrator/runs/records.py. None in the files of older versions."""


class VariantResult(BaseModel):
    """All runs of a label."""

    runs: list[RunResult]
    means: dict[str, MeanEstimate]
    differences: dict[str, MeanEstimate]
    """Of every measure, paired by seed, against the first variant; empty for that one."""


class Comparison(BaseModel):
    """compare.json. Measures: mean and worst held-out loss over the domains and `loss_nats/<domain>`, in nats per loss
    token at the end of training; with a target its gain over the base model and the mean change of all other domains;
    tokens; seconds of the optimizer steps (pulling weights included), of the evaluations and of the signals that the
    algorithm asked for."""

    name: str
    target: str | None
    baseline: str
    """The variant that differences are against."""
    domains: list[str]
    variants: dict[str, VariantResult]
    failed: dict[str, str]
    """Name of each run without a result -> why."""

    @property
    def token_spread(self) -> float:
        """Largest over smallest mean number of tokens of a variant, less 1."""
        tokens = [result.means[NUM_TOKENS].mean for result in self.variants.values() if NUM_TOKENS in result.means]
        return max(tokens) / min(tokens) - 1 if tokens and min(tokens) > 0 else 0.0


def collect(config: SweepConfig, runs: Mapping[str, Sequence[RunConfig]], failed: Mapping[str, str]) -> Comparison:
    """Read what the runs left. A variant without a single result is listed without measures."""
    target = config.target
    results: dict[str, VariantResult] = {}
    first: VariantResult | None = None
    domains = list(config.domains)
    for label, variant in runs.items():
        done = [result for run in variant if (result := _read(run, target)) is not None]
        by_measure = _by_measure(done)
        means = {name: mean for name, values in by_measure.items() if (mean := estimate(list(values.values())))}
        means = _with_errors(means, errors_of_losses(read_mean_losses(run.folder for run in done), domains, MEAN))
        differences = {} if first is None else _differences(done, first.runs, domains)
        results[label] = VariantResult(runs=done, means=means, differences=differences)
        first = first or results[label]
    return Comparison(
        name=config.name,
        target=target,
        baseline=next(iter(runs)),
        domains=domains,
        variants=results,
        failed=dict(failed),
    )


def _differences(ours: Sequence[RunResult], theirs: Sequence[RunResult], domains: list[str]) -> dict[str, MeanEstimate]:
    """Of every measure, paired by seed, and over the held-out examples of the seeds that both have."""
    values, others = _by_measure(ours), _by_measure(theirs)
    pairs = {name: paired_difference(of_seed, others.get(name, {})) for name, of_seed in values.items()}
    shared = {run.seed for run in ours} & {run.seed for run in theirs}
    losses = [read_mean_losses(run.folder for run in runs if run.seed in shared) for runs in (ours, theirs)]
    known = {name: pair for name, pair in pairs.items() if pair is not None}
    return _with_errors(known, errors_of_differences(losses[0], losses[1], domains, MEAN))


def _with_errors(estimates: Mapping[str, MeanEstimate], errors: Mapping[str, float]) -> dict[str, MeanEstimate]:
    return {
        name: MeanEstimate(**(dict(value) | {"held_out_error": errors.get(name)})) for name, value in estimates.items()
    }


def _by_measure(runs: Sequence[RunResult]) -> dict[str, dict[int, float]]:
    """Measure -> seed -> value."""
    by_measure: dict[str, dict[int, float]] = {}
    for run in runs:
        for name, value in run.values.items():
            by_measure.setdefault(name, {})[run.seed] = value
    return by_measure


def _read(config: RunConfig, target: str | None) -> RunResult | None:
    run = read_run(config.folder)
    if run.summary is None:
        return None
    values = measures(run.summary, target)
    if run.feedback:  # a plan of stages has its feedback in the folders of its stages
        values[EVALUATION_SECONDS] = math.fsum(feedback.evaluation_seconds for feedback in run.feedback)
        values[SIGNAL_SECONDS] = math.fsum(feedback.signal_seconds for feedback in run.feedback)
    return RunResult(seed=config.seed, folder=config.folder, values=values, verdict=run.summary.verdict)


def measures(summary: RunSummary, target: str | None) -> dict[str, float]:
    """The measures of a finished run; what was not measured is left out."""
    ends = {name: domain.loss_nats_end for name, domain in summary.domains.items()}
    values: dict[str, float | None] = {MEAN: summary.mean_loss_nats.end, WORST: summary.worst_loss_nats.end}
    if target is not None:
        changes = {name: _change(domain.loss_nats_start, ends[name]) for name, domain in summary.domains.items()}
        gain = changes.pop(target, None)
        others = [change for change in changes.values() if change is not None]
        values[TARGET_GAIN] = None if gain is None else -gain
        values[ELSEWHERE] = math.fsum(others) / len(others) if others else None
    values |= {f"loss_nats/{name}": loss for name, loss in ends.items()}
    values |= {NUM_TOKENS: float(summary.num_tokens), TRAINING_SECONDS: summary.seconds}
    return {name: value for name, value in values.items() if value is not None}


def _change(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start
