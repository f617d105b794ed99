"""What came of the runs of a comparison, compare.json: means over seeds and what can be said of them.

Means and differences paired by seed have Student's t intervals. All seeds are measured on the same held-out examples,
so an interval over seeds does not include that other examples would have given other losses. That uncertainty is a
standard error beside it: sums by example are averaged over the seeds, and the error is that of their ratio
(`workers.validation.loss_statistics`). Runs whose examples are not recorded, or differ, have none.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel
from scipy import stats

from orchestrator.config.run import RunConfig
from orchestrator.config.sweep import SweepConfig
from orchestrator.runs.folder import read_run
from orchestrator.runs.loss_errors import differences, read_last_losses
from orchestrator.runs.records import RunSummary, Verdict
from workers.validation.loss_statistics import ExampleLosses, error_of_mean

MEAN, WORST = "mean_loss_nats", "worst_loss_nats"
TARGET_GAIN, ELSEWHERE = "target_gain_nats", "non_target_change_nats"
NUM_TOKENS, TRAINING_SECONDS = "num_tokens", "training_seconds"
EVALUATION_SECONDS, SIGNAL_SECONDS = "evaluation_seconds", "signal_seconds"
EQUAL_TOKENS_TOLERANCE = 0.01
CONFIDENCE = 0.95


class MeanEstimate(BaseModel):
    """A mean over seeds with half the width of its interval; None with one seed, which tells nothing of the spread."""

    mean: float
    half_width: float | None
    num_seeds: int
    held_out_error: float | None = None
    """Standard error over the held-out examples, which all seeds share: the interval does not include it."""

    @property
    def is_clear(self) -> bool:
        return self.half_width is not None and abs(self.mean) > self.half_width


def estimate(values: Sequence[float]) -> MeanEstimate | None:
    """Mean and t interval of at least one finite value, else None. Infinite and missing values do not count."""
    finite = np.array([value for value in values if math.isfinite(value)])
    if not finite.size:
        return None
    half_width = None
    if finite.size > 1:
        quantile = float(stats.t.ppf(0.5 + CONFIDENCE / 2, finite.size - 1))
        half_width = quantile * float(finite.std(ddof=1)) / math.sqrt(finite.size)
    return MeanEstimate(mean=float(finite.mean()), half_width=half_width, num_seeds=int(finite.size))


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> MeanEstimate | None:
    """Ours less theirs, seed by seed: what the seed does to both cancels. Seeds that one of them lacks do not count."""
    return estimate([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


Losses = dict[str, ExampleLosses]


def read_mean_losses(folders: Iterable[Path]) -> Losses:
    """By domain what each example lost at the end, averaged over runs; without the domains where that is not known."""
    runs = [read_last_losses(read_run(folder)) for folder in folders]
    if not runs:
        return {}
    means = {name: _average([run[name] for run in runs]) for name in runs[0] if all(name in run for run in runs)}
    return {name: losses for name, losses in means.items() if losses is not None}


def _by_held_out_measure(errors: Mapping[str, float], domains: Sequence[str]) -> dict[str, float]:
    """Measure -> standard error: `loss_nats/<domain>`, and their mean where every domain has one."""
    known = {name: error for name, error in errors.items() if np.isfinite(error)}
    measures = {f"loss_nats/{name}": error for name, error in known.items()}
    if domains and all(name in known for name in domains):
        measures[MEAN] = error_of_mean(known[name] for name in domains)
    return measures


def _average(losses: Sequence[ExampleLosses]) -> ExampleLosses | None:
    """The mean of several runs, example by example; None where they measured different ones."""
    first = losses[0]
    if any(not np.array_equal(first.example_E, other.example_E) for other in losses):
        return None
    mean_E = np.mean([part.loss_sum_nats_E for part in losses], axis=0)
    return ExampleLosses(first.example_E, mean_E, first.num_tokens_E, first.num_held_out)


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
        errors = {name: each.standard_error for name, each in read_mean_losses(run.folder for run in done).items()}
        means = _with_errors(means, _by_held_out_measure(errors, domains))
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
    errors = {name: change.standard_error for name, change in differences(*losses).items()}
    known = {name: pair for name, pair in pairs.items() if pair is not None}
    return _with_errors(known, _by_held_out_measure(errors, domains))


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
