"""Means over seeds and what can be said of them: Student's t intervals, for single means and for paired differences.

All seeds of a comparison are measured on the same held-out examples, so an interval over seeds does not include that
other examples would have given other losses. That uncertainty is a standard error beside it: sums by example are
averaged over the seeds, and the error is that of their ratio (`workers.validation.loss_statistics`). Runs whose
examples are not recorded, or differ, have none.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel
from scipy import stats

from orchestrator.runs.folder import read_run
from orchestrator.runs.loss_errors import differences, read_last_losses
from workers.validation.loss_statistics import ExampleLosses, error_of_mean

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


def errors_of_losses(losses: Losses, domains: Sequence[str], mean: str) -> dict[str, float]:
    """Measure -> standard error: `loss_nats/<domain>`, and the measure `mean` where every domain has one."""
    return _by_measure({name: part.standard_error for name, part in losses.items()}, domains, mean)


def errors_of_differences(ours: Losses, theirs: Losses, domains: Sequence[str], mean: str) -> dict[str, float]:
    """The same of ours less theirs, paired over the examples."""
    changes = differences(ours, theirs)
    return _by_measure({name: change.standard_error for name, change in changes.items()}, domains, mean)


def _by_measure(errors: Mapping[str, float], domains: Sequence[str], mean: str) -> dict[str, float]:
    known = {name: error for name, error in errors.items() if np.isfinite(error)}
    measures = {f"loss_nats/{name}": error for name, error in known.items()}
    if domains and all(name in known for name in domains):
        measures[mean] = error_of_mean(known[name] for name in domains)
    return measures


def _average(losses: Sequence[ExampleLosses]) -> ExampleLosses | None:
    """The mean of several runs, example by example; None where they measured different ones."""
    first = losses[0]
    if any(not np.array_equal(first.example_E, other.example_E) for other in losses):
        return None
    mean_E = np.mean([part.loss_sum_nats_E for part in losses], axis=0)
    return ExampleLosses(first.example_E, mean_E, first.num_tokens_E, first.num_held_out)
