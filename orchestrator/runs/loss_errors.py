"""Standard errors of held-out losses and of their changes, from a run's files.

Every number is one standard error in nats per loss token (`workers.validation.loss_statistics`). Runs of older versions
have none: their values are NaN in arrays and None elsewhere.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.runs.folder import RunFolder
from workers.contracts import Change, DomainFeedback
from workers.validation.example_losses import evaluated_steps, read_losses
from workers.validation.loss_statistics import ExampleLosses, error_of_mean, is_clear, paired_difference


@dataclass(frozen=True)
class LossErrors:
    """Errors of one domain, or of the mean of all: at the start and the end, and the change between them."""

    start: float | None = None
    end: float | None = None
    change: Change | None = None


@dataclass(frozen=True)
class RunErrors:
    mean: LossErrors = LossErrors()
    domains: dict[str, LossErrors] = field(default_factory=dict)

    def of(self, domain: str) -> LossErrors:
        return self.domains.get(domain, LossErrors())


def run_errors(run: RunFolder) -> RunErrors:
    """Errors of the first and the latest evaluation, of the run's domains and of their mean."""
    feedback, names = run.feedback, run.domains
    if not feedback or not names:
        return RunErrors()
    first, last = (feedback[0] if feedback[0].step == 0 else None), feedback[-1]
    domains = {
        name: LossErrors(
            first.standard_error_nats.get(name) if first else None,
            last.standard_error_nats.get(name),
            last.change_from_first.get(name),
        )
        for name in names
    }
    mean = LossErrors(
        mean_error(first, names) if first else None,
        mean_error(last, names),
        mean_difference(last.change_from_first, names),
    )
    return RunErrors(mean, domains)


def mean_error(feedback: DomainFeedback, domains: Sequence[str]) -> float | None:
    """Standard error of the mean loss of the domains; None if one of them has none."""
    known = feedback.standard_error_nats
    return error_of_mean(known[name] for name in domains) if all(name in known for name in domains) else None


def evaluation_errors(run: RunFolder, domain: str) -> NDArray[np.float64]:
    """Standard error of the domain's loss at each evaluation; NaN if unknown."""
    return np.array([item.standard_error_nats.get(domain, math.nan) for item in run.feedback], dtype=np.float64)


def change_errors(run: RunFolder, domain: str) -> NDArray[np.float64]:
    """Standard error of the domain's change since step 0, at each evaluation; NaN if unknown."""
    changes = [item.change_from_first.get(domain) for item in run.feedback]
    return np.array([change.standard_error if change else math.nan for change in changes], dtype=np.float64)


def read_last_losses(run: RunFolder) -> dict[str, ExampleLosses]:
    """The loss of each held-out example at the run's last evaluation; empty if it was not recorded."""
    feedback = run.feedback
    if not feedback or feedback[-1].step not in evaluated_steps(run.path):
        return {}
    try:
        return read_losses(run.path, feedback[-1].step)
    except (OSError, ValueError):  # damaged, and everything else can be shown without it
        return {}


def differences(ours: dict[str, ExampleLosses], theirs: dict[str, ExampleLosses]) -> dict[str, Change]:
    """By domain, ours minus theirs, paired over the examples that both measured."""
    found = {name: paired_difference(ours[name], theirs[name]) for name in ours if name in theirs}
    return {
        name: Change(nats=nats, standard_error=error)
        for name, (nats, error) in found.items()
        if math.isfinite(nats) and math.isfinite(error)
    }


def mean_difference(changes: dict[str, Change], domains: Sequence[str]) -> Change | None:
    """Mean of the differences of all these domains; None if one of them has none."""
    if not domains or any(name not in changes for name in domains):
        return None
    nats = math.fsum(changes[name].nats for name in domains) / len(domains)
    return Change(nats=nats, standard_error=error_of_mean(changes[name].standard_error for name in domains))


def verdict(change: float | None, error: float | None) -> Literal["better", "worse", "same"]:
    """`better`, `worse` or `same`: by more than noise if the error is known, else by any visible change."""
    if change is None or not math.isfinite(change) or abs(change) < 0.0005:
        return "same"
    if error is not None and not is_clear(change, error):
        return "same"
    return "better" if change < 0 else "worse"
