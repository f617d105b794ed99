"""The uncertainty from the held-out examples alone: standard errors of the means over seeds, and of paired differences.

All seeds of a comparison are measured on the same held-out examples, so an interval over seeds does not include that
other examples would have given other losses. Sums by example are averaged over the seeds, and the error is that of
their ratio (`workers.validation.loss_statistics`). Runs whose examples are not recorded, or differ, have none.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from orchestrator.runs.folder import read_run
from orchestrator.runs.losses import differences, read_last_losses
from workers.validation.loss_statistics import ExampleLosses, error_of_mean

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
